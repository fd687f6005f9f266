// The frames of crops over the pictures: drawn, dragged, zoomed, moved by keys. In the grid a frame is moved as a whole; in the large view it has corners and takes the keys.
"use strict";

(function (tuner) {
    const { h } = tuner;
    const STILL = 4, PAUSE = 350, STEP = 10, ZOOM = 1.05, LEAST = 0.02, THUMB = 256; // px that a click may move; ms after the last key; px of the crop with Shift; a key's zoom; least side of a frame; px
    const data = tuner.data = tuner.data || {};
    (data.parts = data.parts || []).push({ mount: () => {}, drawn: () => {}, cell, viewed });
    const crops = data.crops;
    let large = null, active = 0, wanted = false; // large: {row, layer, bar, image} of the large view; active: the crop that keys and buttons are for; wanted: the focus goes to the frame
    const clamp = (value, low, high) => Math.min(Math.max(value, low), Math.max(low, high));

    // ---- geometry, in fractions of the upright picture ----

    const sides = (crop) => [crop.frame[0] / crop.zoom, crop.frame[1] / crop.zoom];

    function boxOf(crop) {
        const [w, h_] = sides(crop);
        return { left: clamp(crop.x - w / 2, 0, 1 - w), top: clamp(crop.y - h_ / 2, 0, 1 - h_), w, h: h_ };
    }

    function moveTo(crop, left, top) {
        const [w, h_] = sides(crop);
        crop.x = clamp(left, 0, 1 - w) + w / 2;
        crop.y = clamp(top, 0, 1 - h_) + h_ / 2;
    }

    // The largest zoom at which nothing is enlarged by more than is allowed.
    const limit = (crop) => Math.max(1, Math.min((Number(crops.values.enlarge) || 1) / crop.times, crop.frame[0] / LEAST, crop.frame[1] / LEAST));

    function zoomBy(crop, factor) {
        const { left, top, w, h: h_ } = boxOf(crop), middle = [left + w / 2, top + h_ / 2];
        crop.zoom = clamp(crop.zoom * factor, 1, limit(crop));
        const [nw, nh] = sides(crop);
        moveTo(crop, middle[0] - nw / 2, middle[1] - nh / 2);
    }

    // A corner is pulled to a point; the corner across from it stays.
    function pull(crop, box, corner, x, y) {
        const east = corner.includes("e"), south = corner.includes("s"), across = east ? box.left : box.left + box.w, down = south ? box.top : box.top + box.h;
        const room = Math.min(east ? 1 - across : across, (south ? 1 - down : down) * box.w / box.h, crop.frame[0]);
        const width = clamp(Math.max(east ? x - across : across - x, (south ? y - down : down - y) * box.w / box.h), crop.frame[0] / limit(crop), room);
        crop.zoom = Math.max(1, crop.frame[0] / width);
        const [w, h_] = sides(crop);
        moveTo(crop, east ? across : across - w, south ? down : down - h_);
    }

    const free = (crop) => sides(crop).map((side) => side < 1 - 1e-6);

    // ---- drawing ----

    const STATE = () => ({ auto: tuner.t("to look at"), adjusted: tuner.t("moved"), approved: tuner.t("approved"), stale: tuner.t("changed since") });
    const MARKS = { auto: "?", adjusted: "✎", approved: "✓", stale: "!" };

    // Frames over a picture; elements stay while one of them is dragged.
    function drawFrames(layer, entry, inLarge) {
        const count = entry.crops.length, row = entry.row, stale = entry.state === "stale";
        layer.classList.toggle("tuner-d-many", count > 1);
        while (layer.children.length > count) layer.lastChild.remove();
        entry.crops.forEach((crop, i) => {
            const frame = layer.children[i] || layer.appendChild(make(row, i, inLarge)), box = boxOf(crop), [across, down] = free(crop);
            Object.assign(frame.style, { left: `${box.left * 100}%`, top: `${box.top * 100}%`, width: `${box.w * 100}%`, height: `${box.h * 100}%`, touchAction: inLarge || down ? "none" : across ? "pan-y" : "auto" });
            frame.dataset.state = stale ? "stale" : crop.state;
            frame.classList.toggle("tuner-d-active", inLarge && i === active);
            frame.classList.toggle("tuner-d-still", crop.fixed || (!inLarge && !across && !down));
            if (inLarge) frame.setAttribute("aria-label", `${tuner.t("Crop {0} of {1}", i + 1, count)}, ${STATE()[frame.dataset.state]}, ${enlarged(crop)}`);
        });
    }

    function make(row, index, inLarge) {
        const corners = inLarge ? ["nw", "ne", "sw", "se"].map((corner) => h("i", { class: "tuner-d-corner", "data-corner": corner, "aria-hidden": "true" })) : [];
        const frame = h("div", { class: "tuner-d-frame", onpointerdown: (event) => grab(event, row, index, frame, inLarge), ...(inLarge ? {
            id: `tuner-d-frame-${index}`, tabindex: 0, role: "group", "aria-roledescription": tuner.t("crop frame"), title: tuner.t("Drag it, pull a corner; arrow keys, + and − move it, Enter approves and goes on"),
            onkeydown: (event) => keys(event, row, index), onfocus: () => { active = index; drawLarge(); },
        } : {}) }, corners);
        return frame;
    }

    // A cell of the grid.
    function cell(row, element) {
        const entry = crops.known.get(row), shown = element.querySelector(".tuner-d-shown");
        let layer = shown.querySelector(".tuner-d-crops"), mark = shown.querySelector(".tuner-d-mark");
        if (!entry || !entry.crops.length || !entry.size) {
            if (layer) { layer.remove(); mark.remove(); }
            return;
        }
        if (!layer) {
            layer = shown.appendChild(h("div", { class: "tuner-d-crops" }));
            mark = shown.appendChild(h("span", { class: "tuner-d-mark", role: "img" }));
        }
        const [w, h_] = entry.size, least = Math.min(1, THUMB / Math.max(w, h_));
        layer.style.width = `min(100cqw, calc(100cqh * ${w / h_}), ${Math.max(1, Math.round(w * least))}px)`;
        layer.style.aspectRatio = `${w} / ${h_}`;
        drawFrames(layer, entry, false);
        const state = entry.state === "stale" ? "stale" : leastDone(entry), small = entry.troubles.includes("small"), note = [STATE()[state], ...entry.told.map(tuner.said)].join("; ");
        mark.dataset.state = state;
        tuner.text(mark, `${MARKS[state]}${small ? ` ×${times(entry.crops[0])}` : ""}`);
        mark.title = note;
        mark.setAttribute("aria-label", note);
    }

    const leastDone = (entry) => ["auto", "adjusted", "approved"].find((state) => entry.crops.some((crop) => crop.state === state));
    const times = (crop) => (crop.times * crop.zoom).toFixed(crop.times * crop.zoom < 10 ? 2 : 0).replace(/0$/, "");
    const enlarged = (crop) => (crop.times * crop.zoom > 1.004 ? tuner.t("{0}x enlarged", times(crop)) : tuner.t("not enlarged"));
    const tooMuch = (crop) => crop.times * crop.zoom > (Number(crops.values.enlarge) || 1) + 0.004;

    crops.draw = function (row) {
        const element = data.cellOf(row);
        if (element) cell(row, element);
        if (large && large.row === row) drawLarge();
    };

    // ---- dragging ----

    function grab(event, row, index, frame, inLarge) {
        const entry = crops.known.get(row), crop = entry && entry.crops[index];
        if (!crop || crop.fixed || event.button || !event.isPrimary || event.ctrlKey || event.metaKey || event.shiftKey) return;
        const area = frame.parentNode.getBoundingClientRect(), from = [event.clientX, event.clientY], box = boxOf(crop), corner = event.target.dataset.corner;
        let moved = false;
        if (inLarge) { event.preventDefault(); frame.focus({ preventScroll: true }); }
        frame.setPointerCapture(event.pointerId);

        function move(now) {
            const dx = now.clientX - from[0], dy = now.clientY - from[1];
            if (!moved && Math.hypot(dx, dy) < STILL) return;
            if (!moved) {
                moved = true;
                crops.hold(row);
                frame.classList.add("tuner-d-held");
            }
            if (corner) pull(crop, box, corner, (now.clientX - area.left) / area.width, (now.clientY - area.top) / area.height);
            else moveTo(crop, box.left + dx / area.width, box.top + dy / area.height);
            crop.state = "adjusted";
            crops.draw(row);
        }

        function end(now) {
            for (const [name, does] of listened) frame.removeEventListener(name, does);
            frame.classList.remove("tuner-d-held");
            if (!moved) return;
            crops.changed(row);
            if (now.type === "pointerup") frame.addEventListener("click", (click) => click.stopPropagation(), { once: true }); // it was no click on the cell
        }

        const listened = [["pointermove", move], ["pointerup", end], ["pointercancel", end]];
        for (const [name, does] of listened) frame.addEventListener(name, does);
    }

    // ---- the large view ----

    // Called when the large view has been drawn: frames over its picture, and a line of buttons above.
    function viewed(panel, item) {
        const two = panel.querySelector(".tuner-d-two"), place = panel.querySelector("#tuner-d-large"), image = place.querySelector("img");
        if (!large || large.row !== item.row) active = 0;
        if (large) large.observer.disconnect();
        const bar = h("div", { id: "tuner-d-frame-bar", class: "tuner-d-bar tuner-d-frame-bar" }), layer = h("div", { class: "tuner-d-crops" });
        large = { row: item.row, bar, layer, image, observer: new ResizeObserver(fit) };
        two.before(bar);
        place.append(layer);
        large.observer.observe(image);
        large.observer.observe(place);
        drawLarge();
        crops.load([item.row]).then(() => large && large.row === item.row && drawLarge());
    }

    function fit() {
        const { layer, image } = large;
        Object.assign(layer.style, { left: `${image.offsetLeft}px`, top: `${image.offsetTop}px`, width: `${image.offsetWidth}px`, height: `${image.offsetHeight}px` });
    }

    function drawLarge() {
        if (!large || !large.layer.isConnected) return;
        const entry = crops.known.get(large.row);
        if (!entry) return;
        active = clamp(active, 0, entry.crops.length - 1);
        drawFrames(large.layer, entry, true);
        fit();
        drawBar(entry);
        if (!wanted || large.row !== data.view.row) return;
        wanted = false;
        (large.layer.children[active] || large.bar.querySelector("button")).focus({ preventScroll: true });
    }

    const button = (id, text, action, more = {}) => h("button", { type: "button", id, class: "tuner-button", onclick: data.doing(action), ...more }, text);

    // The buttons are made once for each kind of line; what they say while a frame moves is changed in place.
    function drawBar(entry) {
        const { bar, row } = large, crop = entry.crops[active], stale = entry.state === "stale", kind = `${Boolean(crop)} ${stale}`;
        if (bar.dataset.kind !== kind) {
            bar.dataset.kind = kind;
            tuner.keepFocus(bar, () => bar.replaceChildren(h("span", { id: "tuner-d-frame-state", role: "status" }), h("span", { id: "tuner-d-frame-times" }), h("span", { class: "tuner-d-space" }),
                ...(crop ? [button("tuner-d-frame-out", "−", () => change((c) => zoomBy(c, 1 / ZOOM)), { "aria-label": tuner.t("Zoom out") }), button("tuner-d-frame-in", "+", closer, { "aria-label": tuner.t("Zoom in") })] : []), crop && !stale ? "" : button("tuner-d-frame-find", tuner.t("Find a crop"), find),
                button("tuner-d-frame-add", tuner.t("Add crop"), add), crop ? button("tuner-d-frame-drop", tuner.t("Remove crop"), drop) : "", button("tuner-d-frame-undo", tuner.t("Undo crop"), undo),
                crop ? button("tuner-d-frame-approve", tuner.t("Approve, next"), approve, { class: "tuner-button tuner-strong", title: "Enter" }) : ""));
        }
        const state = document.getElementById("tuner-d-frame-state"), note = document.getElementById("tuner-d-frame-times"), shown = !crop ? "none" : stale ? "stale" : crop.state;
        state.dataset.state = shown;
        tuner.text(state, !crop ? tuner.t("No crop yet") : `${entry.crops.length > 1 ? `${tuner.t("Crop {0} of {1}", active + 1, entry.crops.length)}: ` : `${tuner.t("Crop")}: `}${STATE()[shown]}`);
        tuner.text(note, !crop ? "" : `${crop.size[0]} x ${crop.size[1]} · ${enlarged(crop)}${crops.saving(row) ? ` · ${tuner.t("saving…")}` : ""}`);
        note.classList.toggle("tuner-bad-text", Boolean(crop) && tooMuch(crop));
        large.bar.title = entry.told.map(tuner.said).join("\n");
        crops.drawUndo();
    }

    // ---- what buttons and keys do ----

    function change(does, wait = PAUSE) {
        const entry = crops.known.get(large.row), crop = entry && entry.crops[active];
        if (!crop || crop.fixed) return false;
        const after = { ...crop, state: "adjusted" };
        does(after);
        if (["x", "y", "zoom"].every((key) => Math.abs(after[key] - crop[key]) < 1e-9)) return false;
        Object.assign(crop, after);
        crops.changed(large.row, wait); // keys in quick succession are one change
        return true;
    }

    function closer() {
        if (!change((crop) => zoomBy(crop, ZOOM))) data.say(tuner.t("No closer, since more enlargement is not allowed."));
    }

    function nudge(x, y, far) {
        change((crop) => {
            const { left, top, w, h: h_ } = boxOf(crop), by = far ? STEP : 1;
            moveTo(crop, left + x * by * w / crop.size[0], top + y * by * h_ / crop.size[1]);
        });
    }

    async function find() {
        await crops.find({ rows: [large.row] }, true);
    }

    // A crop more: in the middle, or a little beside the last one.
    async function add() {
        const row = large.row;
        await crops.flush();
        await crops.load([row]);
        const entry = crops.known.get(row), last = entry.crops[entry.crops.length - 1];
        const more = last ? { ...last, zoom: Math.max(1, Math.min(last.zoom * 1.25, limit(last))), x: clamp(last.x + 0.1, 0, 1), state: "adjusted" } : { x: 0.5, y: 0.5, zoom: 1, target: "", state: "adjusted", frame: [1, 1], size: [0, 0], times: 0 };
        if (last) entry.crops.push(more);
        else entry.crops = [more]; // the server knows its size and says it at once
        active = entry.crops.length - 1;
        wanted = true;
        if (last) crops.changed(row);
        else crops.hold(row);
        await crops.flush();
    }

    async function drop() {
        const entry = crops.known.get(large.row);
        if (!entry || !entry.crops.length) return;
        entry.crops.splice(active, 1);
        wanted = true;
        crops.changed(large.row);
        await crops.flush();
    }

    async function undo() {
        const rows = await crops.undo(), [row] = rows;
        if (rows.length === 1 && large && data.view.row !== null && row !== large.row && data.rows.includes(row)) await data.view.open(row);
    }

    let approving = false;

    // One at a time: a second Enter is not for the picture that comes into sight between the two.
    async function approve() {
        if (approving) return;
        approving = true;
        try {
            await approveShown();
        } finally {
            approving = false;
        }
    }

    async function approveShown() {
        const row = large.row, entry = crops.known.get(row);
        await crops.flush();
        if (entry.state === "stale") throw new Error(tuner.t("This picture has changed since it was cropped; move the frame, or find crops again."));
        await crops.approve({ rows: [row] }, row);
        wanted = true;
        await data.view.to(1);
        if (data.view.row === row) { drawLarge(); data.say(tuner.t("That was the last picture.")); }
    }

    const KEYS = {
        ArrowLeft: (far) => nudge(-1, 0, far), ArrowRight: (far) => nudge(1, 0, far), ArrowUp: (far) => nudge(0, -1, far), ArrowDown: (far) => nudge(0, 1, far),
        "+": closer, "=": closer, "-": () => change((crop) => zoomBy(crop, 1 / ZOOM)), "_": () => change((crop) => zoomBy(crop, 1 / ZOOM)),
        Enter: approve, Delete: drop, Backspace: drop, a: add,
    };

    function keys(event, row, index) {
        if (event.altKey || tuner.composing(event) || !large || large.row !== row) return;
        active = index;
        const controlled = event.ctrlKey || event.metaKey, action = controlled ? { z: undo }[event.key.toLowerCase()] : event.key.toLowerCase() === "u" ? undo : KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
        if (!action) return; // Escape, Tab, J, K and T are the view's
        event.preventDefault();
        event.stopPropagation();
        if (event.repeat && action === approve) return; // a key that is held is no second look
        data.doing(async () => { await crops.settled(); await action(event.shiftKey); })({ currentTarget: null });
    }
})(window.tuner);

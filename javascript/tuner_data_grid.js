// The grid of an open folder: only cells that are in sight exist, however many pictures there are.
"use strict";

(function (tuner) {
    const { h } = tuner;
    const CELL = 168, HEAD = 28, MARGIN = 2, ASK = 40; // px of a cell, of the line below its picture; rows of cells beyond the edge; ms
    const data = tuner.data = tuner.data || {};
    (data.parts = data.parts || []).push({ mount, drawn });
    let box = null, inner = null, cells = new Map(), columns = 1, timer = null, waiting = false, anchor = null, place_ = 0; // place_: of the current one in the list; cells: by row
    data.current = null;

    function mount(main) {
        inner = h("div", { class: "tuner-d-inner" });
        box = h("div", { id: "tuner-d-grid", class: "tuner-d-grid", tabindex: 0, role: "listbox", "aria-multiselectable": "true", "aria-label": tuner.t("Pictures"), onkeydown: keys,
            onscroll: () => { if (!waiting) { waiting = true; requestAnimationFrame(() => { waiting = false; place(); }); } } }, inner);
        cells = new Map();
        new ResizeObserver(() => box.isConnected && place()).observe(box);
        main.append(h("div", { class: "tuner-d-selection", id: "tuner-d-selection" }), box);
    }

    function drawn() {
        if (data.current !== null && !data.rows.includes(data.current) && (!data.view || data.view.row !== data.current)) data.current = null; // the one in large stays, also where it has left the filter
        for (const cell of cells.values()) cell.remove();
        cells.clear();
        place();
        drawSelection();
    }

    // ---- cells ----

    function place() {
        const width = box.clientWidth;
        if (!width) return; // out of sight
        columns = Math.max(1, Math.floor(width / CELL));
        const lines = Math.ceil(data.rows.length / columns), high = CELL + HEAD;
        inner.style.height = `${Math.max(lines * high, 1)}px`;
        const first = Math.max(0, Math.floor(box.scrollTop / high) - MARGIN), last = Math.min(lines, Math.ceil((box.scrollTop + box.clientHeight) / high) + MARGIN);
        const wanted = new Map();
        for (let at = first * columns; at < Math.min(last * columns, data.rows.length); at++) wanted.set(data.rows[at], at);
        for (const [row, cell] of cells) {
            if (!wanted.has(row)) { cell.remove(); cells.delete(row); }
        }
        for (const [row, at] of wanted) {
            let cell = cells.get(row);
            if (!cell) {
                cell = make(row);
                cells.set(row, cell);
                inner.append(cell);
            }
            cell.style.transform = `translate(${(at % columns) * (width / columns)}px, ${Math.floor(at / columns) * high}px)`;
            cell.style.width = `${width / columns - 8}px`;
            mark(row, cell);
        }
        if (!data.rows.length && !inner.querySelector("p")) inner.append(h("p", { class: "tuner-small tuner-d-none" }, tuner.t("No picture fits the filter.")));
        else if (data.rows.length && inner.querySelector("p")) inner.querySelector("p").remove();
        clearTimeout(timer);
        timer = setTimeout(ask, ASK);
    }

    data.pictureUrl = (row, side) => tuner.url(`data/${data.folder.id}/pictures/${row}?side=${side}&v=${data.stamp}`);

    function make(row) {
        const image = h("img", { src: data.pictureUrl(row, 256), alt: "", draggable: "false", loading: "lazy", onerror: () => image.replaceWith(h("span", { class: "tuner-d-broken" }, tuner.t("cannot be shown"))) });
        return h("div", { class: "tuner-d-cell", role: "option", id: `tuner-d-cell-${row}`, "data-row": row, onclick: (event) => pick(row, event), ondblclick: () => data.view.open(row) },
            h("div", { class: "tuner-d-shown" }, image), h("div", { class: "tuner-d-line" }, h("span", { class: "tuner-d-name" }), h("small", {})));
    }

    function mark(row, cell) {
        const known = data.details.get(row), chosen = data.selected.has(row);
        cell.classList.toggle("tuner-d-current", row === data.current);
        cell.setAttribute("aria-selected", chosen);
        for (const part of data.parts) if (part.cell) part.cell(row, cell);
        if (!known) return;
        tuner.text(cell.querySelector(".tuner-d-name"), known.name);
        cell.title = `${known.place}\n${known.text}`;
        cell.setAttribute("aria-label", `${known.name}: ${known.text || tuner.t("no caption")}`);
        const note = cell.querySelector("small");
        tuner.text(note, !known.tags.length ? tuner.t("no caption") : known.is_text ? tuner.t("sentences") : tuner.count(known.tags.length, "{0} tag", "{0} tags"));
        note.classList.toggle("tuner-bad-text", !known.tags.length || known.tokens > 75);
    }

    // Captions of the cells in sight that are not known yet.
    async function ask() {
        for (const part of data.parts) if (part.asked && data.folder) part.asked([...cells.keys()]);
        const rows = [...cells.keys()].filter((row) => !data.details.has(row));
        if (!rows.length || !data.folder) return;
        try {
            if (!await data.learn(rows)) return; // who changed it draws the grid anew
        } catch (error) {
            data.say(error.message, true);
            return;
        }
        for (const [row, cell] of cells) mark(row, cell);
    }

    // ---- choosing ----

    function pick(row, event) {
        box.focus({ preventScroll: true });
        if (event.shiftKey && anchor !== null) {
            const [a, b] = [data.rows.indexOf(anchor), data.rows.indexOf(row)].sort((x, y) => x - y);
            for (const each of data.rows.slice(a, b + 1)) data.selected.add(each);
        } else if (event.ctrlKey || event.metaKey) {
            toggle(row);
        } else if (row === data.current && !data.selected.size) {
            if (event.detail < 2) data.view.open(row); // the second of a double click comes before that, which opens it
            return;
        }
        if (!event.shiftKey) anchor = row;
        go(row);
        drawSelection();
    }

    function toggle(row) {
        if (!data.selected.delete(row)) data.selected.add(row);
    }

    const go = data.go = function (row) {
        data.current = row;
        const at = place_ = data.rows.indexOf(row), high = CELL + HEAD, top = Math.floor(at / columns) * high;
        if (box.clientHeight) {
            if (top < box.scrollTop) box.scrollTop = top;
            else if (top + high > box.scrollTop + box.clientHeight) box.scrollTop = top + high - box.clientHeight;
        }
        place();
        box.setAttribute("aria-activedescendant", `tuner-d-cell-${row}`);
        for (const [each, cell] of cells) mark(each, cell);
    };

    // The picture so many places further on; nothing beyond the ends.
    data.step = function (by) {
        const at = data.current === null ? -1 : data.rows.indexOf(data.current);
        const next = at >= 0 ? at + by : data.current === null ? 0 : by > 0 ? place_ : place_ - 1; // the one that has left the list left a gap
        if (next >= 0 && next < data.rows.length) go(data.rows[next]);
        return data.current;
    };

    function drawSelection() {
        const count = data.selected.size, line = document.getElementById("tuner-d-selection");
        tuner.show(line, count > 0);
        const button = (id, text, action) => h("button", { type: "button", id, class: "tuner-button", onclick: data.doing(action) }, text);
        tuner.keepFocus(line, () => line.replaceChildren(...(count ? [h("span", {}, tuner.t("{0} selected", count)),
            button("tuner-d-invert", tuner.t("Invert"), () => { data.selected = new Set(data.rows.filter((row) => !data.selected.has(row))); chosen(); }),
            button("tuner-d-clear", tuner.t("None"), () => { data.selected.clear(); chosen(); }),
            button("tuner-d-delete", tuner.t("Into the trash"), () => data.preview("delete", {}, "selected"))] : [])));
        data.scopeDrawn();
    }

    function chosen() {
        for (const [row, cell] of cells) mark(row, cell);
        drawSelection();
    }

    // The tags of the picture that the frame is on, for `paste`: into what is selected, or into that one.
    async function copy() {
        const known = data.details.get(data.current);
        if (!known) return;
        data.copied = known.tags;
        data.say(tuner.t("Tags of {0} copied; V pastes them into what is selected.", known.name));
    }

    async function paste() {
        const rows = data.selected.size ? [...data.selected] : data.current === null ? [] : [data.current];
        if (data.copied && rows.length) await data.edit("paste", { tags: data.copied }, rows);
    }

    // ---- keys ----

    const KEYS = {
        ArrowRight: () => data.step(1), ArrowLeft: () => data.step(-1), ArrowDown: () => data.step(columns), ArrowUp: () => data.step(-columns), j: () => data.step(1), k: () => data.step(-1),
        Home: () => data.rows.length && go(data.rows[0]), End: () => data.rows.length && go(data.rows[data.rows.length - 1]),
        Enter: () => data.current !== null && data.view.open(data.current),
        " ": () => { if (data.current !== null) { toggle(data.current); anchor = data.current; chosen(); } },
        "/": () => document.getElementById("tuner-d-filter").focus(),
        t: () => data.current !== null && data.view.open(data.current, true),
        c: copy, v: paste, u: () => data.undo(), Delete: () => (data.current !== null || data.selected.size) && data.preview("delete", {}, "selected"),
        Escape: () => { data.selected.clear(); chosen(); },
        "?": () => { document.getElementById("tuner-d-help").open = true; document.querySelector("#tuner-d-help summary").focus(); },
    };
    const WITH_CONTROL = { a: () => { data.selected = new Set(data.rows); chosen(); }, z: () => data.undo(), y: () => data.redo() };

    function keys(event) {
        if (tuner.composing(event)) return;
        const controlled = event.ctrlKey || event.metaKey, action = event.altKey ? null : (controlled ? WITH_CONTROL : KEYS)[event.key.length === 1 ? event.key.toLowerCase() : event.key];
        if (!action) return;
        event.preventDefault();
        event.stopPropagation();
        data.doing(async () => action())({ currentTarget: null });
    }

    data.cellOf = (row) => cells.get(row);
    data.focusGrid = () => box.focus({ preventScroll: true });
    data.place = () => place();
})(window.tuner);

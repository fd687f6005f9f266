// Crops of an open folder: what is known of them, saving what was moved, and the section that finds them and writes them out. Frames are drawn by tuner_data_frame.js.
"use strict";

(function (tuner) {
    const { h } = tuner;
    const WAIT = 400, COUNT = 1200, KEPT = "tuner-crop", STEPS = 100; // ms after the last key, and before pictures are counted anew; changes that can be taken back
    const data = tuner.data = tuner.data || {};
    (data.parts = data.parts || []).push({ mount, drawn: scoped, scoped, asked: (rows) => crops.any && load(rows) });
    // known: by row, as the server has them and what is not saved yet; cfg: how pictures are cropped; how: how crops are written; any: whether the folder has crops
    const crops = data.crops = { known: new Map(), folder: null, any: false, cfg: { size: "512x512", focus: "auto", enlarge: "1" }, how: { form: "png", quality: "95", name: "{name}", mirror: "off", flat: false }, counts: null };
    let box = null, timer = null, counting = null, chain = Promise.resolve(), epoch = 0; // chain: orders go one after the other
    const asked = new Map(), dirty = new Map(), latest = new Map(), past = []; // latest: by row, the last order that was given; asked: by row, the answer that is waited for; dirty: by row, the timer of its saving; past: {row, crops} before each change

    try { Object.assign(crops.cfg, JSON.parse(localStorage.getItem(KEPT) || "{}")); } catch (error) { /* a browser that keeps nothing, or other words */ }

    const byId = (id) => document.getElementById(id);
    const order = (more = {}) => ({ crop: { ...crops.cfg }, ...more });

    // ---- what is known ----

    // The crops of these rows where they are not known yet; then they are drawn.
    const load = crops.load = async function (rows) {
        const missing = rows.filter((row) => !crops.known.has(row) && !asked.has(row)), waits = new Set(rows.map((row) => asked.get(row)).filter(Boolean));
        if (missing.length) {
            const answer = read(missing);
            for (const row of missing) asked.set(row, answer);
            waits.add(answer);
        }
        await Promise.all(waits);
    };

    async function read(rows) {
        const mine = epoch;
        try {
            const found = await data.send("crops/read", order({ rows }));
            if (mine !== epoch) return;
            for (const row of rows) asked.delete(row);
            for (const entry of found.crops) crops.known.set(entry.row, entry);
            wrong("");
            rows.forEach(crops.draw);
        } catch (error) {
            for (const row of rows) if (mine === epoch) asked.delete(row);
            if (mine === epoch) wrong(error.message);
        }
    }

    // Everything anew: another size, or crops that were found.
    async function anew() {
        const rows = [...crops.known.keys()];
        forget();
        await Promise.all([load(rows), count()]);
    }

    function forget() {
        epoch++;
        for (const row of [...crops.known.keys()]) if (!dirty.has(row)) crops.known.delete(row); // one that is being moved stays
        asked.clear();
    }

    async function count() {
        clearTimeout(counting);
        if (!data.folder) return;
        const mine = epoch;
        try {
            const found = await data.send("crops/summary", order());
            if (mine === epoch) counted(found);
        } catch (error) {
            wrong(error.message);
        }
    }

    function counted(found) {
        const before = crops.any;
        crops.counts = found;
        crops.any = (found.states.none || 0) < found.pictures;
        wrong("");
        drawCounts();
        if (crops.any && !before) data.place();
    }

    const countSoon = () => { clearTimeout(counting); counting = setTimeout(count, COUNT); };

    // ---- what is changed ----

    const copy = (list) => list.map((crop) => ({ ...crop }));

    // Keeps a picture's crops as they are, for undo; to be called before they are changed.
    crops.remember = function (row) {
        const entry = crops.known.get(row);
        past.push({ row, crops: entry ? copy(entry.crops) : [] });
        if (past.length > STEPS) past.shift();
        drawUndo();
    };

    // Something was moved: it is saved after `wait` ms without another change.
    crops.changed = function (row, wait = 0) {
        clearTimeout(dirty.get(row));
        dirty.set(row, setTimeout(() => save(row), wait));
        crops.draw(row);
    };

    // Nothing is saved, and no answer drawn, while a frame is held.
    crops.hold = function (row) {
        clearTimeout(dirty.get(row));
        dirty.set(row, null);
    };

    function save(row) {
        clearTimeout(dirty.get(row));
        dirty.delete(row);
        const entry = crops.known.get(row), mine = epoch, folder = crops.folder;
        if (!entry) return chain;
        const body = order({ row, crops: copy(entry.crops).map(({ x, y, zoom, target, state }) => ({ x, y, zoom, target, state })) });
        latest.set(row, body);
        chain = chain.then(async () => {
            try {
                const answer = await tuner.send(`data/${folder}/crops/change`, body); // that of the picture, also where another was opened meanwhile
                if (mine === epoch && !dirty.has(row) && latest.get(row) === body) crops.known.set(row, answer); // else the page is further on than this answer
                crops.any = true;
            } catch (error) {
                data.say(error.message, true);
                if (mine === epoch) { crops.known.delete(row); await load([row]); }
            }
            crops.draw(row);
            countSoon();
        });
        return chain;
    }

    // Saves what is not saved yet, and waits for it.
    crops.flush = async function () {
        for (const row of [...dirty.keys()]) save(row);
        await chain;
    };

    crops.saving = (row) => dirty.has(row);

    // Takes the last change back; which picture it was.
    crops.undo = async function () {
        const last = past.pop();
        if (!last) return null;
        await load([last.row]);
        const entry = crops.known.get(last.row);
        if (entry) entry.crops = last.crops;
        crops.changed(last.row);
        drawUndo();
        await crops.flush();
        return last.row;
    };

    // Approves the crops of a scope; how many pictures that changed.
    crops.approve = async function (scope) {
        await crops.flush();
        const answer = await data.send("crops/approve", order(scope));
        counted(answer);
        const rows = scope.rows || [...crops.known.keys()];
        for (const row of rows) if (!dirty.has(row)) crops.known.delete(row);
        await load(rows.filter((row) => !dirty.has(row)));
        return answer.approved;
    };

    crops.find = async function (scope, again = false) {
        await crops.flush();
        try {
            return await data.begin("crops/find", order({ ...scope, again }));
        } finally { // also where it was stopped: what was found until then is there
            await anew();
            if (crops.any) data.place();
        }
    };

    window.addEventListener("beforeunload", (event) => { if (dirty.size) { crops.flush(); event.preventDefault(); } });

    // ---- the section ----

    const FOCUS = () => [["auto", tuner.t("a face, else detail")], ["face", tuner.t("a face, else the middle")], ["detail", tuner.t("where most detail is")], ["centre", tuner.t("the middle")]];
    const MIRROR = () => [["off", tuner.t("none")], ["safe", tuner.t("not where the caption says left or right")], ["swap", tuner.t("with left and right exchanged in the caption")]];
    const SIZES = ["512x512", "512x768", "768x512", "640x640", "768x768", "bucket:512", "bucket:768", "area:512"];
    const TROUBLES = () => [["stale", tuner.t("changed since")], ["small", tuner.t("too small")], ["cut", tuner.t("cuts a face")], ["apart", tuner.t("faces too far apart")]];

    function mount(main, side) {
        for (const row of [...dirty.keys()]) save(row);
        if (crops.folder !== data.folder.id) Object.assign(crops, { folder: data.folder.id, any: false, counts: null });
        past.length = 0;
        forget();
        const field = (id, label, control, help = "") => h("div", { class: "tuner-d-field" }, h("label", { for: id }, label), control, help ? h("small", {}, help) : null);
        box = h("details", { class: "tuner-d-fold tuner-d-cropping", id: "tuner-d-cropping", open: crops.open }, h("summary", {}, tuner.t("Crop")),
            field("tuner-d-crop-size", tuner.t("Size"), input("size", crops.cfg, { list: "tuner-d-crop-sizes" }), tuner.t("512x768, bucket:512 (the nearest size of a run) or area:512 (nothing cut off)")),
            h("datalist", { id: "tuner-d-crop-sizes" }, SIZES.map((size) => h("option", { value: size }))),
            field("tuner-d-crop-focus", tuner.t("What the crop is about"), select("focus", crops.cfg, FOCUS())),
            field("tuner-d-crop-enlarge", tuner.t("Largest enlargement"), input("enlarge", crops.cfg, { inputmode: "decimal" }), tuner.t("1: pictures that are too small are left out and named")),
            h("p", { id: "tuner-d-crop-wrong", class: "tuner-bad-text", role: "alert", hidden: true }),
            h("div", { class: "tuner-buttons" }, button("tuner-d-crop-find", "", findAll, "tuner-strong")),
            h("div", { id: "tuner-d-crop-found", class: "tuner-d-crop-found" }),
            h("details", { id: "tuner-d-crop-write" }, h("summary", {}, tuner.t("Save crops")), h("div", { class: "tuner-d-crop-write" },
                h("div", { class: "tuner-d-crop-pair" }, field("tuner-d-crop-form", tuner.t("Format"), select("form", crops.how, [["png", "PNG"], ["jpg", "JPEG"], ["webp", "WebP"]])), field("tuner-d-crop-quality", tuner.t("Quality"), input("quality", crops.how, { inputmode: "numeric" }))),
                field("tuner-d-crop-name", tuner.t("File names"), input("name", crops.how), tuner.t("{name}, {index}, {crop}, {folder}, {width} and {height} stand for their values")),
                field("tuner-d-crop-mirror", tuner.t("Mirrored copies"), select("mirror", crops.how, MIRROR())),
                h("label", { class: "tuner-tick" }, h("input", { type: "checkbox", id: "tuner-d-crop-flat", checked: crops.how.flat, onchange: (event) => { crops.how.flat = event.target.checked; } }), tuner.t("All in one folder")),
                field("tuner-d-crop-out", tuner.t("Where to"), h("input", { type: "text", id: "tuner-d-crop-out", spellcheck: "false", autocomplete: "off", placeholder: `${data.folder.name}-crops` }), tuner.t("a path, or a name beside the folder; captions go along")),
                h("div", { class: "tuner-buttons" }, button("tuner-d-crop-save", tuner.t("Save to folder"), () => write(false)), button("tuner-d-crop-zip", tuner.t("Save as ZIP"), () => write(true))),
                h("div", { id: "tuner-d-crop-written", role: "status" }))));
        box.addEventListener("toggle", () => { crops.open = box.open; });
        side.append(box);
        drawQuality();
        clearTimeout(counting);
        counting = setTimeout(count, WAIT); // after the pictures themselves
    }

    const button = (id, text, action, more = "") => h("button", { type: "button", id, class: `tuner-button ${more}`.trim(), onclick: data.doing(action) }, text);

    const input = (key, values, more = {}) => h("input", { type: "text", id: `tuner-d-crop-${key}`, value: values[key], spellcheck: "false", autocomplete: "off", oninput: (event) => set(key, values, event.target.value, WAIT), ...more });

    const select = (key, values, choices) => h("select", { id: `tuner-d-crop-${key}`, onchange: (event) => set(key, values, event.target.value, 0) }, choices.map(([name, label]) => h("option", { value: name, selected: name === values[key] }, label)));

    function set(key, values, text, wait) {
        values[key] = text;
        drawQuality();
        if (values !== crops.cfg) return;
        try { localStorage.setItem(KEPT, JSON.stringify(crops.cfg)); } catch (error) { /* a browser that keeps nothing */ }
        clearTimeout(timer);
        if (key !== "focus") timer = setTimeout(anew, wait);
    }

    const drawQuality = () => { byId("tuner-d-crop-quality") && tuner.show(byId("tuner-d-crop-quality").parentNode, crops.how.form !== "png"); };

    function wrong(text) {
        const element = byId("tuner-d-crop-wrong");
        if (!element) return;
        tuner.text(element, text);
        tuner.show(element, Boolean(text));
    }

    function scoped() {
        const find = byId("tuner-d-crop-find");
        if (!find) return;
        const { label } = data.scope();
        tuner.text(find, tuner.t("Find crops: {0}", label));
        tuner.text(byId("tuner-d-crop-save"), tuner.t("Save to folder"));
        if (byId("tuner-d-crop-approve")) tuner.text(byId("tuner-d-crop-approve"), tuner.t("Approve: {0}", label));
    }

    // How many pictures have crops, each number a filter.
    function drawCounts() {
        const place = byId("tuner-d-crop-found"), { counts } = crops;
        if (!place || !counts) return;
        const { states, troubles, pictures } = counts, number = (n) => n.toLocaleString(tuner.language.locale), cropped = pictures - (states.none || 0);
        const chip = (filter, label, n, kind = "") => h("button", { type: "button", class: `tuner-d-count ${kind}`, "data-filter": filter, title: tuner.t("Show these pictures"), onclick: data.doing(() => data.setFilter(filter)) }, `${label} `, h("small", {}, number(n)));
        const chips = [["crop:auto", tuner.t("to look at"), states.auto, "tuner-d-auto"], ["crop:adjusted", tuner.t("moved"), states.adjusted, "tuner-d-adjusted"], ["crop:approved", tuner.t("approved"), states.approved, "tuner-d-approved"],
            ["crop:none", tuner.t("without a crop"), cropped ? states.none : 0, ""], ...TROUBLES().map(([kind, label]) => [`problem:${kind}`, label, troubles[kind], "tuner-d-stale"])];
        tuner.keepFocus(place, () => place.replaceChildren(...(cropped ? [
            h("p", { id: "tuner-d-crop-count" }, tuner.t("{0} with crops, {1} to look at", number(cropped), number(states.auto || 0))),
            h("div", { class: "tuner-d-counts" }, chips.filter(([, , n]) => n).map((chosen) => chip(...chosen)), data.filter ? h("button", { type: "button", class: "tuner-d-count", onclick: data.doing(() => data.setFilter("")) }, tuner.t("all")) : null),
            h("div", { class: "tuner-buttons" }, button("tuner-d-crop-approve", "", async () => { await crops.approve(data.scope().order); }), button("tuner-d-crop-undo", tuner.t("Undo crop"), crops.undo))] : [])));
        scoped();
        drawUndo();
    }

    function drawUndo() {
        for (const id of ["tuner-d-crop-undo", "tuner-d-frame-undo"]) if (byId(id)) byId(id).disabled = !past.length;
    }
    crops.drawUndo = drawUndo;

    async function findAll() {
        const found = await crops.find(data.scope().order);
        data.say([tuner.t("Crops found: {0}.", found.found), found.kept ? tuner.t("{0} that you have set stay.", found.kept) : "", ...found.told.slice(0, 3).map(tuner.said)].filter(Boolean).join(" "), Boolean(found.problems));
    }

    async function write(zip) {
        await crops.flush();
        const { quality, ...how } = crops.how, place = byId("tuner-d-crop-written");
        place.replaceChildren();
        const body = order({ ...data.scope().order, export: how.form === "png" ? how : { ...how, quality }, out: byId("tuner-d-crop-out").value, zip });
        const done = await data.begin("crops/export", body);
        const text = tuner.t("Pictures saved: {0}, in {1}", done.pictures.toLocaleString(tuner.language.locale), done.path);
        if (!byId("tuner-d-crop-written")) { data.say(text); return; }
        byId("tuner-d-crop-written").replaceChildren(h("p", {}, text), done.problems ? h("details", {}, h("summary", {}, tuner.t("{0} things to know", done.problems)), h("ul", {}, done.told.map((line) => h("li", {}, tuner.said(line))))) : "");
    }
})(window.tuner);

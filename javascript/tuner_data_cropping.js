// The section of crops: its settings, finding and approving, how many pictures are in which state, and saving crops to a folder or a ZIP.
"use strict";

(function (tuner) {
    const { h } = tuner;
    const WAIT = 400; // ms after the last key
    const data = tuner.data = tuner.data || {};
    (data.parts = data.parts || []).push({ mount, drawn: scoped, scoped });
    const crops = data.crops, open = { box: false, write: false, more_crop: false, more_export: false }; // what is unfolded
    let box = null, timer = null;

    const byId = (id) => document.getElementById(id);
    const number = (n) => n.toLocaleString(tuner.language.locale);

    // ---- fields ----

    const OFTEN = ["size", "focus", "enlarge", "form", "quality", "name", "mirror", "flat"]; // the others are behind a fold
    const FRAMED = ["size", "enlarge"]; // by these the frames that are there are drawn
    // What the choices of a field are called.
    const WORDS = () => ({
        focus: { auto: tuner.t("a face, else detail"), face: tuner.t("a face, else the middle"), detail: tuner.t("where most detail is"), centre: tuner.t("the middle") },
        faces: { together: tuner.t("one crop of all that fit"), each: tuner.t("one crop for each face") },
        split: { off: tuner.t("no"), strips: tuner.t("tiles as large as fit"), pixels: tuner.t("tiles in the picture's own pixels") },
        form: { png: "PNG", jpg: "JPEG", webp: "WebP" },
        existing: { refuse: tuner.t("say so and write nothing"), next: tuner.t("take the next free name") },
        mirror: { off: tuner.t("none"), safe: tuner.t("not where the caption says left or right"), swap: tuner.t("with left and right exchanged in the caption") },
    });
    const SIZES = ["512x512", "512x768", "768x512", "640x640", "768x768", "bucket:512", "bucket:768", "area:512"];

    // One setting with the help that the server has of it: below a text, and as a tip where the choices say it already.
    function draw(field) {
        const { key, label, kind } = field, id = `tuner-d-crop-${key}`, help = tuner.t(field.help).replaceAll("`", "");
        if (kind === "flag") return h("label", { class: "tuner-tick", title: help }, h("input", { type: "checkbox", id, checked: crops.values[key], onchange: (event) => set(field, event.target.checked) }), tuner.t(label));
        const words = WORDS()[key] || {}, control = kind === "choice"
            ? h("select", { id, title: help, onchange: (event) => set(field, event.target.value) }, field.choices.map((name) => h("option", { value: name, selected: name === crops.values[key] }, words[name] || name)))
            : h("input", { type: "text", id, value: crops.values[key], spellcheck: "false", autocomplete: "off", inputmode: kind === "number" ? "decimal" : null, list: key === "size" ? "tuner-d-crop-sizes" : null, oninput: (event) => set(field, event.target.value) });
        return h("div", { class: "tuner-d-field" }, h("label", { for: id, title: kind === "choice" ? help : null }, tuner.t(label)), control, kind === "choice" ? null : h("small", {}, help));
    }

    function set(field, value) {
        crops.set(field.key, value);
        drawMeant();
        clearTimeout(timer);
        if (field.of !== "crop") { timer = setTimeout(checkExport, WAIT); return; } // said now, not when all is set up to be saved
        timer = setTimeout(FRAMED.includes(field.key) ? crops.anew : crops.count, field.kind === "choice" ? 0 : WAIT); // a wrong one is said at once
    }

    async function checkExport() {
        const error = await tuner.send("data/crops/check", crops.order({ export: crops.given("export") })).then(() => null, (refused) => refused);
        crops.wrong(error ? error.message : "");
    }

    // Fields that mean nothing beside the others are out of sight.
    function drawMeant() {
        for (const field of crops.fields) {
            const control = byId(`tuner-d-crop-${field.key}`);
            if (control) tuner.show(control.closest(".tuner-d-field, .tuner-tick"), Boolean(crops.means(field)));
        }
    }

    const often = (of) => crops.fields.filter((field) => field.of === of && OFTEN.includes(field.key)).map(draw);
    const fold = (key, id, label, ...body) => h("details", { id, open: open[key], ontoggle: (event) => { event.stopPropagation(); open[key] = event.target.open; } }, h("summary", {}, label), h("div", { class: "tuner-d-crop-fold" }, body.flat()));
    const seldom = (of) => fold(`more_${of}`, `tuner-d-crop-more-${of}`, tuner.t("More"), crops.fields.filter((field) => field.of === of && !OFTEN.includes(field.key)).map(draw));

    // A refusal names a setting by its key; here it has a label, and is in sight.
    const labelled = (text) => tuner.labelled(text, (key) => {
        const field = (crops.fields || []).find((one) => one.key === key);
        if (!field) return null;
        if (!OFTEN.includes(key) && byId(`tuner-d-crop-more-${field.of}`)) byId(`tuner-d-crop-more-${field.of}`).open = true;
        return tuner.t(field.label);
    });

    crops.wrong = function (text) {
        const element = byId("tuner-d-crop-wrong");
        if (!element) return;
        tuner.text(element, labelled(text));
        tuner.show(element, Boolean(text));
    };

    // ---- the section ----

    function mount(main, side) {
        const mine = box = h("details", { class: "tuner-d-fold tuner-d-cropping", id: "tuner-d-cropping", open: open.box, ontoggle: () => { open.box = mine.open; } }, h("summary", {}, tuner.t("Crop")), h("p", { id: "tuner-d-crop-wrong", class: "tuner-bad-text", role: "alert", hidden: true }));
        side.append(box);
        crops.described().then(() => {
            if (mine !== box) return; // the page was drawn anew meanwhile
            fill();
            clearTimeout(timer);
            timer = setTimeout(crops.count, WAIT); // after the pictures themselves
        }, (error) => crops.wrong(error.message));
    }

    function fill() {
        const out = h("input", { type: "text", id: "tuner-d-crop-out", spellcheck: "false", autocomplete: "off", placeholder: `${data.folder.name}-crops` });
        byId("tuner-d-crop-wrong").before(...often("crop"), h("datalist", { id: "tuner-d-crop-sizes" }, SIZES.map((size) => h("option", { value: size }))), seldom("crop"));
        box.append(h("div", { class: "tuner-buttons" }, button("tuner-d-crop-find", "", findAll, "tuner-strong")), h("div", { id: "tuner-d-crop-found", class: "tuner-d-crop-found" }),
            fold("write", "tuner-d-crop-write", tuner.t("Save crops"), often("export"), seldom("export"),
                h("div", { class: "tuner-d-field" }, h("label", { for: "tuner-d-crop-out" }, tuner.t("Where to")), out, h("small", {}, tuner.t("a path, or a name beside the folder; captions go along"))),
                h("div", { class: "tuner-buttons" }, button("tuner-d-crop-save", tuner.t("Save to folder"), () => write(false)), button("tuner-d-crop-zip", tuner.t("Save as ZIP"), () => write(true))),
                h("div", { id: "tuner-d-crop-written", role: "status" })));
        drawMeant();
        scoped();
    }

    const button = (id, text, action, more = "") => h("button", { type: "button", id, class: `tuner-button ${more}`.trim(), onclick: data.doing(action) }, text);

    function scoped() {
        const find = byId("tuner-d-crop-find");
        if (!find) return;
        const { label } = data.scope();
        tuner.text(find, tuner.t("Find crops: {0}", label));
        if (byId("tuner-d-crop-approve")) tuner.text(byId("tuner-d-crop-approve"), tuner.t("Approve: {0}", label));
    }

    // ---- what there is ----

    const TROUBLES = () => [["stale", tuner.t("changed since")], ["small", tuner.t("too small")], ["cut", tuner.t("cuts a face")], ["apart", tuner.t("faces too far apart")]];

    // How many pictures have crops, each number a filter.
    crops.drawCounts = function () {
        const place = byId("tuner-d-crop-found"), { counts } = crops;
        if (!place || !counts) return;
        const { states, troubles, pictures } = counts, cropped = pictures - (states.none || 0);
        const chip = (filter, label, n, kind = "") => h("button", { type: "button", class: `tuner-d-count ${kind}`, "data-filter": filter, title: tuner.t("Show these pictures"), onclick: data.doing(() => data.setFilter(filter)) }, `${label} `, h("small", {}, number(n)));
        const chips = [["crop:auto", tuner.t("to look at"), states.auto, "tuner-d-auto"], ["crop:adjusted", tuner.t("moved"), states.adjusted, "tuner-d-adjusted"], ["crop:approved", tuner.t("approved"), states.approved, "tuner-d-approved"],
            ["crop:none", tuner.t("without a crop"), cropped ? states.none : 0, ""], ...TROUBLES().map(([kind, label]) => [`problem:${kind}`, label, troubles[kind], "tuner-d-stale"])];
        tuner.keepFocus(place, () => place.replaceChildren(...(cropped ? [
            h("p", { id: "tuner-d-crop-count" }, tuner.t("{0} with crops, {1} to look at", number(cropped), number(states.auto || 0))),
            h("div", { class: "tuner-d-counts" }, chips.filter(([, , n]) => n).map((chosen) => chip(...chosen)), data.filter ? h("button", { type: "button", class: "tuner-d-count", onclick: data.doing(() => data.setFilter("")) }, tuner.t("all")) : null)] : []),
            ...(cropped || crops.undoable ? [h("div", { class: "tuner-buttons" }, cropped ? button("tuner-d-crop-approve", "", async () => { await crops.approve(data.scope().order); }) : null, button("tuner-d-crop-undo", "", crops.undo))] : [])));
        const written = byId("tuner-d-crop-written");
        if (counts.zip && !written.childElementCount) written.append(download(counts.zip)); // the page was loaded anew since
        scoped();
        crops.drawUndo();
    };

    // What was done last, as the button that takes it back says it.
    const DONE = (n) => ({ find: tuner.t("found ({0})", n), change: tuner.t("changed ({0})", n), approve: tuner.t("approved ({0})", n) });

    crops.drawUndo = function () {
        const { undoable } = crops, what = undoable ? DONE(number(undoable.pictures))[undoable.name] : "", label = tuner.t("Undo crop");
        for (const id of ["tuner-d-crop-undo", "tuner-d-frame-undo"]) if (byId(id)) byId(id).disabled = !undoable;
        if (byId("tuner-d-crop-undo")) tuner.text(byId("tuner-d-crop-undo"), what ? `${label}${tuner.t(": ")}${what}` : label);
        if (byId("tuner-d-frame-undo")) byId("tuner-d-frame-undo").title = what;
    };

    // ---- what buttons do ----

    async function findAll() {
        const found = await crops.find(data.scope().order);
        data.say([tuner.t("Crops found: {0}.", found.found), found.kept ? tuner.count(found.kept, "{0} that you have set stays.", "{0} that you have set stay.") : "", ...found.told.slice(0, 3).map(tuner.said)].filter(Boolean).join(" "), Boolean(found.problems));
    }

    const download = (name) => h("p", {}, h("a", { id: "tuner-d-crop-download", class: "tuner-button", href: tuner.url(`data/${data.folder.id}/crops/zip`), download: name }, tuner.t("Download {0}", name)));

    async function write(zip) {
        await crops.flush();
        byId("tuner-d-crop-written").replaceChildren();
        const { id } = data.folder, body = crops.order({ ...data.scope().order, export: crops.given("export"), out: byId("tuner-d-crop-out").value, zip });
        const done = await data.begin("crops/export", body).catch((error) => { throw new Error(labelled(error.message)); });
        const text = tuner.t("Pictures saved: {0}, in {1}", number(done.pictures), done.path);
        if (!byId("tuner-d-crop-written") || data.folder.id !== id) { data.say(text); return; }
        byId("tuner-d-crop-written").replaceChildren(h("p", {}, text), done.zip ? download(done.path.split(/[\\/]/).pop()) : "", done.problems ? h("details", {}, h("summary", {}, tuner.count(done.problems, "{0} thing to know", "{0} things to know")), h("ul", {}, done.told.map((line) => h("li", {}, tuner.said(line))))) : "");
    }
})(window.tuner);

// Checks and advice: what was found, by kind; a click shows those pictures, another one what would mend it.
"use strict";

(function (tuner) {
    const { h } = tuner;
    const SIDE = 128, MENDS = 4, KEPT = "tuner-advice", FOLDERS = 20; // px of a picture beside its twins; ways to mend one finding; folders whose advice is remembered as done
    const data = tuner.data = tuner.data || {};
    (data.parts = data.parts || []).push({ mount, drawn: () => { scoped(); aged(); }, scoped, toTrain });
    const form = { goal: "", trigger: "", size: "512" };
    let box = null, result = null, folder = "", own = ""; // own: the filter by which advice was looked at
    const opened = new Set(); // kinds that are unfolded

    const GOALS = () => [["", tuner.t("none")], ["character", tuner.t("Character or person")], ["style", tuner.t("Style")], ["pose", tuner.t("Pose or composition")], ["clothing", tuner.t("Clothing or outfit")], ["object", tuner.t("Object")]];
    const KINDS = () => ({
        unreadable: tuner.t("Cannot be read"), "too small": tuner.t("Too small"), blurred: tuner.t("Blurred"), bars: tuner.t("Bars at the edges"), "nearly one colour": tuner.t("Nearly one colour"), "JPEG blocks": tuner.t("JPEG blocks"),
        "colour mode": tuner.t("Unusual colour mode"), transparent: tuner.t("Transparent parts"), animated: tuner.t("Animated"), "EXIF turned": tuner.t("Turned by EXIF alone"), long: tuner.t("Very long or tall"),
        "near duplicate": tuner.t("Pictures that look alike"), "twin captions": tuner.t("Twins with different captions"), "no caption": tuner.t("Without a caption"), "one tag": tuner.t("One tag alone"), "tag twice": tuner.t("A tag twice"),
        "long caption": tuner.t("Longer than 75 tokens"), contradiction: tuner.t("Tags that contradict each other"), "trigger missing": tuner.t("Without the trigger word"), "trigger not first": tuner.t("Trigger word not first"),
        "written over": tuner.t("Something written over the picture"), "sentences and tags": tuner.t("Sentences among tags"), "not UTF-8": tuner.t("Not UTF-8"), "byte order mark": tuner.t("Byte order mark"),
        [`Windows line breaks`]: tuner.t("Line breaks of Windows"), spelling: tuner.t("One tag in several spellings"), "singular and plural": tuner.t("Singular and plural"), "typing error": tuner.t("Typing errors"),
        "shared caption": tuner.t("Pictures that share a caption"), "no picture": tuner.t("Captions without a picture"),
        drop: tuner.t("Leave out"), uneven: tuner.t("Tagged unevenly"), vary: tuner.t("Add variety"), keep: tuner.t("Keep"),
    });

    function mount(main, side) {
        box = h("details", { class: "tuner-d-fold", id: "tuner-d-audit", ontoggle: data.doing(async () => { if (box.open && !result) await last(); }) });
        side.append(box);
        if (folder !== data.folder.id) { result = null; folder = data.folder.id; opened.clear(); }
        draw();
    }

    // What was found before this page was loaded.
    async function last() {
        const mine = data.folder.id, found = (await data.get("audit")).audit;
        if (found && data.folder.id === mine && !result) { result = found; draw(); }
    }

    // ---- the section ----

    function draw() {
        const open = box.open, goal = h("select", { id: "tuner-d-a-goal", onchange: () => { form.goal = goal.value; } }, GOALS().map(([name, label]) => h("option", { value: name, selected: name === form.goal }, label)));
        const text = (key, label, help) => {
            const id = `tuner-d-a-${key}`, input = h("input", { type: "text", id, value: form[key], spellcheck: "false", autocomplete: "off", inputmode: key === "size" ? "numeric" : null, oninput: () => { form[key] = input.value; }, onkeydown: (event) => { if (event.key === "Enter" && !tuner.composing(event)) { event.preventDefault(); data.doing(check)({}); } } });
            return h("div", { class: "tuner-d-field" }, h("label", { for: id }, label), key === "trigger" ? data.suggesting(input) : input, help ? h("small", {}, help) : null);
        };
        data.keepField(box, () => box.replaceChildren(h("summary", {}, tuner.t("Check and advise")), h("div", { class: "tuner-d-body" }, h("div", { class: "tuner-d-field" }, h("label", { for: "tuner-d-a-goal" }, tuner.t("What is learned")), goal, h("small", {}, tuner.t("for advice on tags"))),
            text("trigger", tuner.t("Trigger word"), tuner.t("which every caption should have first")), text("size", tuner.t("Resolution (px)")), h("p", { class: "tuner-small", id: "tuner-d-a-scope" }),
            h("div", { class: "tuner-buttons" }, h("button", { type: "button", id: "tuner-d-a-go", class: "tuner-button tuner-strong", onclick: data.doing(check) }, tuner.t("Check"))), h("div", { id: "tuner-d-a-found" }, ...found()))));
        box.open = open;
        scoped();
        aged();
    }

    // What was found is filtered by, mended and checked again: that is a check of all pictures, not of those that are left in the filter.
    function scope() {
        const now = data.scope();
        return !data.selected.size && (data.filter.includes("problem:") || own && data.filter === own) ? { order: {}, label: tuner.t("all ({0})", data.folder.pictures) } : now;
    }

    const pace = ({ pictures, steps, batch }) => {
        const number = (n) => n.toLocaleString(tuner.language.locale);
        return tuner.count(pictures, "For {0} picture a LoRA is usually trained about {1} steps of {2} pictures (a rule of thumb).", "For {0} pictures a LoRA is usually trained about {1} steps of {2} pictures (a rule of thumb).", number(steps), number(batch));
    };

    function scoped() {
        const line = document.getElementById("tuner-d-a-scope");
        if (line) tuner.text(line, `${tuner.t("On which pictures")}: ${scope().label}`);
    }

    function aged() {
        const line = document.getElementById("tuner-d-a-aged");
        if (line) tuner.show(line, Boolean(result) && result.version !== data.folder.version);
    }

    function size() {
        const typed = form.size.trim();
        if (!typed) throw new Error(tuner.t("Resolution is empty; write a number of px such as 512."));
        if (!Number.isFinite(Number(typed))) throw new Error(tuner.t("Resolution: {0} is not a number; write px such as 512.", typed));
        return Math.round(Number(typed));
    }

    async function check() {
        const px = size();
        if (data.view) await data.view.flush();
        data.showPlan(null, box);
        result = await data.begin("audit", { goal: form.goal, trigger: form.trigger, size: px, ...scope().order });
        draw();
        await data.look(); // a filter by what was found names other pictures now
    }

    // The trigger word goes into the sample prompts and keeps its place in captions; the rule of thumb is told alone.
    function toTrain(train) {
        const word = form.trigger.trim(), said = [];
        if (word) {
            const prompts = String(train.value("sample.prompts") || "");
            if (!prompts.includes(word)) train.set("sample.prompts", [word, prompts].filter(Boolean).join("\n"));
            if (!Number(train.value("data.keep_tags"))) train.set("data.keep_tags", word.split(",").length);
            said.push(tuner.t("The trigger word {0} is a sample prompt and stays in front of the captions.", word));
        }
        if (result && result.steps) said.push(pace(result));
        return said;
    }

    // ---- what was found ----

    function found() {
        if (!result) return [];
        const { kinds, advice, pictures, steps, shares, goal } = result;
        return [h("p", { id: "tuner-d-a-aged", class: "tuner-small", hidden: true }, tuner.t("Something has changed since this check; check again to see what is left. That is fast.")),
            h("p", { id: "tuner-d-a-said" }, kinds.length ? tuner.count(pictures, "{0} picture checked.", "{0} pictures checked.") : tuner.count(pictures, "{0} picture checked; nothing was found.", "{0} pictures checked; nothing was found.")),
            ...kinds.map((kind) => drawKind(kind)),
            ...(goal ? [h("h5", {}, tuner.t("Advice on tags")), h("p", { class: "tuner-small" }, tuner.t("Suggestions after a rule that is widely followed and that nobody has proven.")), ...(advice.length ? advised(advice) : [h("p", { class: "tuner-small" }, tuner.t("Nothing to change."))])] : []),
            ...(steps ? [h("p", { class: "tuner-small" }, pace(result))] : []),
            ...shares.map((text) => h("p", { class: "tuner-small" }, tuner.said(text)))];
    }

    const QUOTE = String.fromCharCode(34);
    const asFilter = (kind) => `problem:${kind.includes(" ") ? QUOTE + kind + QUOTE : kind}`;

    function drawKind(kind, advice = false) {
        const name = KINDS()[kind.kind] || kind.kind, mend = kind.mend || (kind.kind === "drop" ? together(kind) : null), many = kind.findings.length > 1 || kind.more > 0;
        const slot = h("div", { class: "tuner-d-slot" }); // where what a mend changes is seen
        const buttons = [...(!advice && kind.rows.length ? [h("button", { type: "button", class: "tuner-button tuner-d-a-show", onclick: data.doing(() => pictures(kind.kind)) }, tuner.t("Show the pictures"))] : []),
            ...(mend && many ? [mendButton(mend, kind.rows, slot, tuner.t("Mend all: {0}", mendName(mend)))] : [])];
        const body = kind.kind === "near duplicate" ? result.groups.map((group) => twins(group, slot)) : kind.findings.map((finding) => drawFinding(finding, slot));
        return h("details", { class: "tuner-d-kind", "data-kind": kind.kind, open: opened.has(kind.kind), ontoggle: (event) => { event.stopPropagation(); if (event.target.open) opened.add(kind.kind); else opened.delete(kind.kind); } },
            h("summary", {}, h("span", {}, name), h("small", {}, String(advice ? kind.findings.length + kind.more : kind.files))), buttons.length ? h("div", { class: "tuner-buttons" }, buttons) : null, slot,
            h("ul", {}, body, kind.more ? h("li", { class: "tuner-small" }, tuner.t("and {0} more", kind.more)) : null));
    }

    // ---- advice that is done with: what to keep and to vary changes no caption, so a person says it ----

    function remembered() {
        try { return JSON.parse(localStorage.getItem(KEPT)) || {}; } catch (failure) { return {}; } // a browser that keeps nothing
    }

    const doneOf = () => new Set(remembered()[data.folder.folder] || []);
    const nameOf = (finding) => `${result.goal} ${finding.kind} ${finding.tag}`;

    function setDone(names) {
        const others = Object.entries(remembered()).filter(([name]) => name !== data.folder.folder).slice(1 - FOLDERS);
        try { localStorage.setItem(KEPT, JSON.stringify(Object.fromEntries(names.length ? [...others, [data.folder.folder, names]] : others))); } catch (failure) { /* as above */ }
        draw();
    }

    function advised(advice) {
        const done = doneOf(), left = advice.map((kind) => ({ ...kind, findings: kind.findings.filter((finding) => !done.has(nameOf(finding))) })).filter((kind) => kind.findings.length || kind.more);
        const count = advice.reduce((sum, kind) => sum + kind.findings.length, 0) - left.reduce((sum, kind) => sum + kind.findings.length, 0);
        const again = () => setDone([...done].filter((name) => !name.startsWith(`${result.goal} `)));
        return [...left.map((kind) => drawKind(kind, true)), ...(count ? [h("p", { class: "tuner-small", id: "tuner-d-a-done" }, tuner.t("{0} marked as done:", count), " ", h("button", { type: "button", class: "tuner-d-link", onclick: again }, tuner.t("show them again")))] : [])];
    }

    // The pictures that have a tag, or lack it; and that a person has seen to it.
    function adviceButtons(finding) {
        const show = (text, filter) => h("button", { type: "button", class: "tuner-button tuner-d-a-show", onclick: data.doing(() => { own = filter; return filtered(filter); }) }, text);
        return [show(tuner.t("Show pictures with it"), data.quoted(finding.tag)), ...(["vary", "uneven"].includes(finding.kind) ? [show(tuner.t("Show pictures without it"), `NOT ${data.quoted(finding.tag)}`)] : []),
            h("button", { type: "button", class: "tuner-button tuner-d-a-done", onclick: () => setDone([...doneOf(), nameOf(finding)]) }, tuner.t("Done"))];
    }

    // All suggestions to leave a tag out as one edit.
    function together(kind) {
        const tags = kind.findings.flatMap((finding) => finding.mends.flatMap((mend) => mend.args.tags || []));
        return tags.length > 1 ? { name: "remove", args: { tags } } : null;
    }

    // They are shown, and seen where the page is one narrow column too.
    const pictures = (kind) => filtered(asFilter(kind));

    async function filtered(line) {
        await data.setFilter(line);
        document.getElementById("tuner-d-filter").scrollIntoView({ block: "nearest" });
    }

    async function openRow(row) {
        await data.view.open(row);
        document.getElementById("tuner-d-view").scrollIntoView({ block: "nearest" });
    }

    function drawFinding(finding, slot) {
        const mends = finding.mends.slice(0, MENDS).map((mend) => mendButton(mend, finding.rows, slot, mendName(mend)));
        const show = finding.rows.length === 1 ? [h("button", { type: "button", class: "tuner-d-link", onclick: data.doing(() => openRow(finding.rows[0])) }, tuner.t("Open"))] : [];
        const more = finding.tag ? adviceButtons(finding) : [];
        return h("li", {}, h("p", {}, tuner.said(finding.text)), mends.length || show.length || more.length ? h("div", { class: "tuner-buttons" }, mends, show, more) : null);
    }

    const mendName = (mend) => (mend.name === "choose" ? tuner.t("Keep {0}", mend.args.tag) : data.named({ edit: mend.name, args: mend.args, files: "" }).replace(/ \(\)$/, ""));

    const mendButton = (mend, rows, slot, text) => h("button", { type: "button", class: "tuner-button tuner-d-a-mend", disabled: !data.folder.editable || !rows.length, onclick: data.doing(() => data.preview(mend.name, mend.args, { rows }, slot)) }, text);

    // The picture that is kept, and beside it those that look like it.
    function twins(group, slot) {
        const figure = (row, text) => h("figure", {}, h("img", { src: data.pictureUrl(row, SIDE), alt: "", loading: "lazy", onclick: data.doing(() => openRow(row)) }), h("figcaption", {}, text));
        const others = group.others.map((twin) => twin.row);
        return h("li", {}, h("div", { class: "tuner-d-twins" }, figure(group.keep, tuner.t("the best")), group.others.map((twin) => figure(twin.row, twin.mirrored ? tuner.t("mirrored") : twin.bits ? tuner.count(twin.bits, "{0} of 64 bits differs", "{0} of 64 bits differ") : tuner.t("looks the same")))),
            h("div", { class: "tuner-buttons" }, h("button", { type: "button", class: "tuner-button", disabled: !data.folder.editable, onclick: data.doing(() => data.preview("delete", {}, { rows: others }, slot)) }, tuner.t("Put the others into the trash"))));
    }
})(window.tuner);

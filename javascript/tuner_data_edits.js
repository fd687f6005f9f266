// Edits of many captions: what is asked, for which pictures, "37 of 412 change" with samples, and then the one click that does it.
"use strict";

(function (tuner) {
    const { h } = tuner;
    const ONE = ["old", "after", "tag"], SEVERAL = ["tags", "pinned", "new", "group"]; // fields that take a tag, or several
    const WAIT = 350, FEW = 4; // ms after the last key; sentences that are shown unfolded
    const data = tuner.data = tuner.data || {};
    (data.parts = data.parts || []).push({ mount, drawn: () => scopes() });
    const form = { name: "add", values: {}, scope: null, plan: null }; // scope: null until somebody chooses one;
    let box = null, sheet = null, timer = null, asked = 0; // sheet: what would change, beside whatever asked for it

    const PLACES = () => [["last", tuner.t("at the end")], ["first", tuner.t("at the front")], ["after", tuner.t("after another tag")]];
    const ORDERS = () => [["alphabet", tuner.t("alphabet")], ["frequency", tuner.t("frequency")], ["length", tuner.t("length")], ["confidence", tuner.t("confidence of the tagger")]];
    const tags = (label, help = "") => ({ key: "tags", label, help });
    const pinned = () => ({ key: "pinned", label: tuner.t("Tags that stay in front"), help: tuner.t("such as the trigger word") });
    // {name: [label, fields]}; a field: {key, label, help, kind: text, number, flag or choice}
    const EDITS = () => ({
        add: [tuner.t("Add tags"), [tags(tuner.t("Tags"), tuner.t("{folder} and {name} stand for the words of a picture's folder and file")), { key: "where", label: tuner.t("Where"), kind: "choice", choices: PLACES() }, { key: "after", label: tuner.t("After this tag"), only: ["where", "after"] }, pinned()]],
        remove: [tuner.t("Remove tags"), [tags(tuner.t("Tags"))]],
        keep: [tuner.t("Keep only these tags"), [tags(tuner.t("Tags"))]],
        rename: [tuner.t("Rename a tag"), [{ key: "old", label: tuner.t("Tag") }, { key: "new", label: tuner.t("New name"), help: tuner.t("with a comma: several tags") }]],
        replace: [tuner.t("Replace part of tags"), [{ key: "find", label: tuner.t("Find") }, { key: "text", label: tuner.t("Replace by"), may: true }]],
        regex: [tuner.t("Regular expression in tags"), [{ key: "pattern", label: tuner.t("Pattern") }, { key: "text", label: tuner.t("Replace by"), may: true }]],
        regex_line: [tuner.t("Regular expression in captions"), [{ key: "pattern", label: tuner.t("Pattern") }, { key: "text", label: tuner.t("Replace by"), may: true }]],
        choose: [tuner.t("Set one of a group"), [{ key: "tag", label: tuner.t("Tag") }, { key: "group", label: tuner.t("Tags that exclude each other") }]],
        front: [tuner.t("Move tags to the front"), [tags(tuner.t("Tags, in this order"))]],
        sort: [tuner.t("Sort tags"), [{ key: "by", label: tuner.t("By"), kind: "choice", choices: ORDERS() }, { key: "reverse", label: tuner.t("The other way round"), kind: "flag" }, pinned()]],
        deduplicate: [tuner.t("Remove tags that are there twice"), []],
        above: [tuner.t("Drop tags below a score of the tagger"), [{ key: "least", label: tuner.t("Least score"), kind: "number" }, pinned()]],
        truncate: [tuner.t("Cut to a number of tokens"), [{ key: "limit", label: tuner.t("Tokens"), kind: "number", start: "75" }, pinned()]],
        spaces: [tuner.t("Underscores to blanks"), []], underscores: [tuner.t("Blanks to underscores"), []],
        escape: [tuner.t("Backslashes before parentheses"), []], unescape: [tuner.t("No backslashes before parentheses"), []],
        lower: [tuner.t("Small letters"), []], tidy: [tuner.t("Tidy commas and blanks"), []], utf8: [tuner.t("Save as UTF-8"), [{ key: "encoding", label: tuner.t("Encoding of captions that are neither UTF-8 nor UTF-16"), help: tuner.t("such as cp1252 or shift_jis; empty: they stay"), may: true }]],
    });
    const OTHERS = () => ({ write: tuner.t("Edit of a caption"), delete: tuner.t("Into the trash"), paste: tuner.t("Paste tags"), tag: tuner.t("Tagger"), caption: tuner.t("Description by") });

    data.editName = (name) => (EDITS()[name] || [OTHERS()[name] || name])[0];

    function mount(main, side) {
        form.plan = null; // of the folder as it was
        box = h("section", { class: "tuner-d-edits", id: "tuner-d-edits" });
        side.append(box);
        sheet = h("div", { id: "tuner-d-plan", class: "tuner-d-plan", "aria-live": "polite" });
        draw();
    }

    // ---- what is asked ----

    function draw() {
        const edits = EDITS(), select = h("select", { id: "tuner-d-edit", "aria-label": tuner.t("Edit"), onchange: () => { form.name = select.value; form.plan = null; draw(); check(); } },
            Object.entries(edits).map(([name, [label]]) => h("option", { value: name, selected: name === form.name }, label)));
        const fields = edits[form.name][1].filter((field) => !field.only || value(field.only[0]) === field.only[1]);
        box.replaceChildren(h("h4", {}, tuner.t("Edit many captions")), select, ...fields.map(drawField), h("fieldset", { id: "tuner-d-scope", class: "tuner-d-scope" }));
        scopes();
        show();
    }

    const value = (key) => (form.values[form.name] || {})[key] ?? (EDITS()[form.name][1].find((field) => field.key === key) || {}).start ?? ({ where: "last", by: "alphabet" }[key] ?? "");

    function set(key, given) {
        (form.values[form.name] = form.values[form.name] || {})[key] = given;
        if (key === "where") draw();
        check();
    }

    function drawField(field) {
        const id = `tuner-d-f-${field.key}`;
        if (field.kind === "flag") return h("label", { class: "tuner-tick" }, h("input", { type: "checkbox", id, checked: value(field.key) === true, onchange: (event) => set(field.key, event.target.checked) }), field.label);
        const control = field.kind === "choice" ? h("select", { id, onchange: (event) => set(field.key, event.target.value) }, field.choices.map(([name, label]) => h("option", { value: name, selected: name === value(field.key) }, label)))
            : h("input", { type: "text", id, value: String(value(field.key)), spellcheck: "false", autocomplete: "off", inputmode: field.kind === "number" ? "decimal" : null, oninput: (event) => set(field.key, event.target.value), onkeydown: (event) => { if (event.key === "Enter" && !tuner.composing(event)) { event.preventDefault(); accept(); } } });
        const suggested = ONE.includes(field.key) || SEVERAL.includes(field.key);
        return h("div", { class: "tuner-d-field" }, h("label", { for: id }, field.label), suggested ? data.suggesting(control, SEVERAL.includes(field.key)) : control, field.help ? h("small", {}, field.help) : null);
    }

    // The arguments as the server takes them; null where something is to be filled in yet.
    function args() {
        const fields = EDITS()[form.name][1], given = {};
        for (const field of fields) {
            const text = value(field.key);
            if (field.kind === "flag") { if (text) given[field.key] = true; continue; }
            if (String(text).trim() === "" && !field.may) { if (["pinned", "after"].includes(field.key)) continue; return null; }
            given[field.key] = field.kind === "number" ? Number(text) : text;
        }
        if (form.name === "rename") return { names: { [given.old]: given.new } };
        if (given.where === "after") { given.where = "last"; } else { delete given.after; }
        return given;
    }

    // The first field that is to be filled in yet, once somebody has begun.
    function lacking() {
        const typed = form.values[form.name] || {}, needed = EDITS()[form.name][1].filter((field) => field.kind !== "flag" && !field.may && !["pinned", "after"].includes(field.key));
        const begun = EDITS()[form.name][1].some((field) => String(typed[field.key] ?? "").trim() && field.kind !== "choice");
        return begun ? needed.find((field) => String(value(field.key)).trim() === "") : null;
    }

    // ---- for which pictures ----

    function scopes() {
        const set_ = document.getElementById("tuner-d-scope");
        if (!set_) return;
        const rows = data.rows.length === data.folder.pictures ? [] : [["filter", tuner.t("filtered ({0})", data.rows.length)]];
        const choices = [["all", tuner.t("all ({0})", data.folder.pictures)], ...rows, ...(data.selected.size ? [["selected", tuner.t("selected ({0})", data.selected.size)]] : [])];
        if (!choices.some(([name]) => name === form.scope)) form.scope = null;
        const scope = chosenScope();
        tuner.keepFocus(set_, () => set_.replaceChildren(h("legend", {}, tuner.t("On which pictures")), ...choices.map(([name, label]) => h("label", {},
            h("input", { type: "radio", name: "tuner-d-scope", id: `tuner-d-scope-${name}`, value: name, checked: name === scope, onchange: () => { form.scope = name; check(); } }), label))));
        scopeTold();
    }

    // Other parts that work on the same pictures.
    function scopeTold() {
        for (const part of data.parts) if (part.scoped) part.scoped();
    }

    // What somebody has chosen; else what is selected, or what the filter names.
    const chosenScope = () => form.scope || (data.selected.size ? "selected" : data.rows.length === data.folder.pictures ? "all" : "filter");

    // The selection has changed: an edit is for what is selected until somebody says otherwise.
    data.scopeDrawn = function () {
        if (data.selected.size) form.scope = null;
        scopes();
        if (form.plan && !form.plan.own) check();
    };

    // Draws anew, and the field in which somebody is keeps the focus.
    data.keepField = function (element, draw) {
        const name = element.contains(document.activeElement) ? document.activeElement.id : "";
        draw();
        const again = name && document.getElementById(name);
        if (again) again.focus({ preventScroll: true });
    };

    // The pictures that are meant where nobody has chosen: what is selected, or what the filter names; as an order takes them, and in words.
    data.scope = function () {
        if (data.selected.size) return { order: scopeOf("selected"), label: tuner.t("selected ({0})", data.selected.size) };
        if (data.rows.length !== data.folder.pictures) return { order: scopeOf("filter"), label: tuner.t("filtered ({0})", data.rows.length) };
        return { order: {}, label: tuner.t("all ({0})", data.folder.pictures) };
    };

    const scopeOf = (scope) => (typeof scope === "object" ? scope : scope === "selected" ? { rows: [...data.selected] } : scope === "filter" ? { filter: data.filter } : {});

    // ---- what would change ----

    function check() {
        clearTimeout(timer);
        asked++; // an answer to what the fields said before is no plan any more
        form.plan = null;
        show();
        timer = setTimeout(() => plan(form.name, args(), chosenScope()).catch((error) => wrong(error)), WAIT);
    }

    function wrong(error) {
        form.plan = { error: error.message };
        show();
    }

    // A refusal names the edit, which is chosen here, and an argument by its key.
    function refused(error, name) {
        const labelOf = (key) => (key === name ? data.editName(name) : (EDITS()[name][1].find((field) => field.key === key) || { label: null }).label);
        throw new Error(tuner.labelled(error.message, labelOf, name).replace(/^([a-z]+) ?(?=is |应)/, (whole, key) => (labelOf(key) ? `${labelOf(key)} ` : whole)));
    }

    async function plan(name, given, scope) {
        const mine = ++asked;
        if (!given) {
            const field = lacking();
            form.plan = field ? { lacks: field.label } : null;
            show();
            return;
        }
        const found = await data.send("plan", { name, args: given, ...scopeOf(scope) }).catch((error) => refused(error, name));
        if (mine !== asked) return;
        form.plan = found;
        show();
    }

    // An edit that was asked for elsewhere: it is shown before it is carried out, in `slot` where one is given. `scope`: all, filter, selected, or {rows}.
    data.preview = async function (name, given, scope, slot = null) {
        clearTimeout(timer);
        if (data.view) await data.view.flush();
        const mine = ++asked;
        if (name === "delete") {
            const rows = scope.rows || (data.selected.size ? [...data.selected] : [data.current]);
            form.plan = { own: true, slot, remove: rows, changes: rows.length, title: tuner.count(rows.length, "{0} picture and its caption go into the trash of the folder; undo brings them back.", "{0} pictures and their captions go into the trash of the folder; undo brings them back.") };
        } else {
            const found = await data.send("plan", { name, args: given, ...scopeOf(scope) });
            if (mine !== asked) return;
            form.plan = { ...found, own: true, slot, title: data.named({ edit: name, args: given, files: found.changes }) };
        }
        show();
        toApply();
    };

    function toApply() {
        const button = document.getElementById("tuner-d-apply");
        if (button) button.focus();
        sheet.scrollIntoView({ block: "nearest" });
    }

    // A plan that came from elsewhere, shown in `slot`; null takes away what is shown there; `go`: on to the button that applies it.
    data.showPlan = function (found, slot, go = false) {
        if (!found && !(form.plan && form.plan.slot && slot.contains(form.plan.slot))) return;
        clearTimeout(timer);
        asked++;
        form.plan = found && { ...found, own: true, slot };
        show();
        if (go) toApply();
    };

    function show() {
        const place = sheet, now = form.plan;
        if (!place) return;
        if (!now) { place.replaceChildren(); return; }
        if (now.slot && now.slot.isConnected) now.slot.append(place);
        else if (now.remove) document.getElementById("tuner-d-selection").after(place);
        else if (now.own) document.getElementById("tuner-d-like").after(place);
        else box.append(place);
        if (now.lacks) { place.replaceChildren(h("p", { class: "tuner-small" }, tuner.t("{0} is to be filled in yet.", now.lacks))); return; }
        if (now.error) { place.replaceChildren(h("p", { class: "tuner-bad-text", role: "alert" }, now.error)); return; }
        const said = now.remove ? now.title : tuner.count(now.changes, "{0} of {1} changes", "{0} of {1} change", now.total.toLocaleString(tuner.language.locale));
        place.replaceChildren(now.title && !now.remove ? h("p", {}, h("strong", {}, now.title)) : "", h("p", { id: "tuner-d-said" }, said), now.emptied ? h("p", { class: "tuner-bad-text" }, tuner.count(now.emptied, "{0} caption loses all its words.", "{0} captions lose all their words.")) : "",
            now.changes ? h("div", { class: "tuner-buttons" }, h("button", { type: "button", id: "tuner-d-apply", class: "tuner-button tuner-strong", onclick: data.doing(apply) }, tuner.t("Apply")), h("button", { type: "button", id: "tuner-d-cancel", class: "tuner-button", onclick: () => { form.plan = null; show(); data.focusGrid(); } }, tuner.t("Cancel"))) : "",
            ...(now.samples || []).map(sample), ...told(now.told || []));
    }

    function told(texts) {
        const lines = texts.map((text) => h("p", { class: "tuner-small" }, tuner.said(text)));
        return lines.length > FEW ? [h("details", {}, h("summary", {}, tuner.count(lines.length, "{0} thing to know", "{0} things to know")), ...lines)] : lines;
    }

    // Before and after, tag by tag: what goes is struck through, what comes is marked.
    function sample({ name, before, after }) {
        const parts = (text) => text.split(",").map((part) => part.trim()).filter(Boolean), [old, now] = [parts(before), parts(after)];
        const side = (own, other, mark) => own.flatMap((tag, i) => [i ? ", " : "", other.includes(tag) ? tag : h(mark, {}, tag)]);
        return h("div", { class: "tuner-d-sample" }, h("small", {}, name), h("div", {}, side(old, now, "del")), h("div", {}, side(now, old, "ins")));
    }

    async function apply() {
        const now = form.plan;
        if (!now || !now.changes) return;
        if (data.view) await data.view.flush();
        const answer = now.remove ? await data.write("delete", { rows: now.remove }) : await data.write("apply", { plan: now.plan });
        form.plan = null;
        show();
        if (now.remove) data.selected.clear();
        await data.changed(answer);
        data.say(answer.entry ? tuner.t("Done: {0}. Undo takes it back.", data.named(answer.entry)) : tuner.t("Nothing was to be changed."));
        data.focusGrid();
    }

    // Enter in a field: the preview at once, and with a second one the edit.
    const accept = data.doing(async () => {
        clearTimeout(timer);
        if (form.plan && form.plan.changes) await apply();
        else await plan(form.name, args(), chosenScope());
    });
})(window.tuner);

// The tagger: pictures are scored once, as long work; then thresholds and rules are tried out on the scores, and what they would write is seen before it is written.
// Inside the WebUI its models that describe pictures are in the same list, without thresholds and rules.
"use strict";

(function (tuner) {
    const { h } = tuner;
    const DRAG = 250, KEPT = "tuner-tagger", FILE = "file", MOST = 24; // ms after the last movement; chips of a picture
    const data = tuner.data = tuner.data || {};
    (data.parts = data.parts || []).push({ mount, drawn: () => { scoped(); }, scoped, viewed });
    const form = { model: "", second: "", path: "", mode: "skip", agreement: "any", exclude: "", always: "", most: "", rating: false, underscores: false, escape: false, thresholds: {}, more: false };
    let box = null, slot = null, list = null, error = "", timer = null, asked = 0, folder = ""; // list: what the server has; error: why WD14 models cannot run

    function mount(main, side) {
        slot = h("div", { id: "tuner-d-tag-slot" });
        box = h("details", { class: "tuner-d-fold", id: "tuner-d-tagger", ontoggle: data.doing(async () => { if (box.open) { await load(); draw(); if (kept().length) await plan(); } }) });
        const before = document.getElementById("tuner-d-audit");
        if (before) before.before(box);
        else side.append(box);
        if (folder !== data.folder.id) list = null;
        draw();
    }

    async function load() {
        const mine = data.folder.id;
        const found = await data.get("taggers");
        if (!data.folder || data.folder.id !== mine) return;
        [list, error, folder] = [found.taggers, found.error, mine];
        if (!form.model) form.model = first();
    }

    // What somebody chose before, or a model that is here, or the embedded one.
    function first() {
        let before = "";
        try { before = localStorage.getItem(KEPT) || ""; } catch (failure) { /* a browser that keeps nothing */ }
        if (list.some(({ name }) => name === before)) return before;
        return (list.find((one) => one.here && !one.embedded && !one.words && !error) || list[0]).name;
    }

    // ---- what is chosen ----

    const nameOf = (choice) => (choice === FILE ? form.path.trim() : choice);
    const known = (choice) => (list || []).find(({ name }) => name === choice);
    const words = (choice = form.model) => Boolean((known(choice) || {}).words); // a model of the WebUI that describes pictures
    const choices = () => (words() ? [form.model] : [form.model, form.second]).filter((choice) => choice && nameOf(choice));
    const seen = new Set(); // files that were asked in this session; the list does not have them
    const isKept = (choice) => (known(choice) ? known(choice).kept : seen.has(`${folder} ${nameOf(choice)}`));
    const kept = () => (choices().every(isKept) ? choices() : []);
    const usual = (choice) => known(choice) || { general: 0.35, character: 0.35 };
    const thresholds = (choice) => form.thresholds[choice] || { general: usual(choice).general, character: usual(choice).character };

    // How many tags a picture may get; 0: all. Digits of a Chinese keyboard are digits too.
    function most() {
        const text = form.most.normalize("NFKC").trim();
        if (!/^\d*$/.test(text)) throw new Error(tuner.t("{0}: {1} is not a whole number.", tuner.t("At most so many tags"), form.most));
        return Number(text);
    }

    const order = (chosen) => ({
        taggers: chosen.map((choice) => ({ name: nameOf(choice), ...thresholds(choice) })), mode: form.mode, agreement: form.agreement, exclude: form.exclude, always: form.always,
        most: most(), rating: form.rating ? "tag" : "none", underscores: form.underscores, escape: form.escape,
    });

    const MODES = () => [["skip", tuner.t("stay as they are")], ["merge", tuner.t("get the tags that they lack at the end")], ["prepend", tuner.t("get the found tags at the front, likeliest first")],
        ["append", tuner.t("get the found tags at the end, likeliest first")], ["replace", tuner.t("are replaced by the found tags")]];

    const WORD_MODES = () => [["skip", tuner.t("stay as they are")], ["prepend", tuner.t("get the description at the front")], ["append", tuner.t("get the description at the end")], ["replace", tuner.t("are replaced by the description")]];

    // ---- the section ----

    function draw() {
        const open = box.open, saying = list && words();
        if (saying && form.mode === "merge") form.mode = "append";
        const body = list ? [choice("model", tuner.t("Tagger"), options(false)), ...file("model"), note(form.model), ...(saying ? [] : [choice("second", tuner.t("A second one"), options(true)), ...agreement()]),
            choice("mode", tuner.t("Captions that are there"), saying ? WORD_MODES() : MODES()), h("p", { class: "tuner-small", id: "tuner-d-t-scope" }),
            h("div", { class: "tuner-buttons" }, h("button", { type: "button", id: "tuner-d-t-go", class: "tuner-button tuner-strong", disabled: !data.folder.editable, onclick: data.doing(saying ? describe : tag) }, saying ? tuner.t("Describe") : tuner.t("Tag pictures"))),
            h("p", { class: "tuner-small" }, saying ? tuner.t("Describing writes nothing: what would be written is shown below, and what happens to captions that are there can be tried out without asking again.") : tuner.t("Tagging writes nothing: what would be written is shown below, and thresholds can be tried out without tagging again.")),
            ...(saying ? [] : [...choices().flatMap(sliders), rules()]), h("p", { id: "tuner-d-t-moved", class: "tuner-small", role: "status" }), slot] : [h("p", { class: "tuner-small" }, tuner.t("Loading…"))];
        data.keepField(box, () => box.replaceChildren(h("summary", {}, tuner.t("Tagger")), h("div", { class: "tuner-d-body" }, body)));
        box.open = open;
        scoped();
    }

    function scoped() {
        const line = document.getElementById("tuner-d-t-scope");
        const label = `${tuner.t("On which pictures")}: ${data.scope().label}`;
        if (!line || line.textContent === label) return;
        const shown = line.textContent && slot.textContent;
        tuner.text(line, label);
        if (shown) again(0); // what is shown was for other pictures
    }

    function options(second) {
        const label = (one) => (one.words ? tuner.t("{0} (a model of the WebUI)", one.name) : one.embedded ? tuner.t("{0} (embedded)", one.name) : one.here ? one.name : tuner.t("{0} (to be downloaded)", one.name));
        return [...(second ? [["", tuner.t("none")]] : []), ...list.filter(({ name }) => !second || (name !== form.model && !words(name))).map((one) => [one.name, label(one)]), ...(second ? [] : [[FILE, tuner.t("a file of my own (.onnx)")]])];
    }

    function choice(key, label, all) {
        const id = `tuner-d-t-${key}`, select = h("select", { id, onchange: () => {
            form[key] = select.value;
            if (key === "model") {
                if (form.second === form.model) form.second = "";
                try { localStorage.setItem(KEPT, form.model); } catch (failure) { /* a browser that keeps nothing */ }
            }
            draw();
            again(0);
        } }, all.map(([name, text]) => h("option", { value: name, selected: name === form[key] }, text)));
        return h("div", { class: "tuner-d-field" }, h("label", { for: id }, label), select);
    }

    function file(key) {
        if (form[key] !== FILE) return [];
        return [field("path", tuner.t("Path of the .onnx file, with its selected_tags.csv beside it"))];
    }

    function note(model) {
        const one = known(model), small = (text) => h("p", { class: "tuner-small tuner-d-t-note" }, text);
        if (one && one.words) {
            return small(`${model === "BLIP" ? tuner.t("It writes a sentence about each picture.") : tuner.t("It writes Danbooru's tags, as the WebUI's settings for it say.")} ${tuner.t("The WebUI loads its own model for it, which it fetches from the internet at the first use; meanwhile it draws no pictures.")}`);
        }
        if (model === FILE || !one || !one.embedded) {
            if (error) return h("p", { class: "tuner-bad-text tuner-d-t-note" }, tuner.said(error));
            if (one && !one.here) return small(tuner.t("It is fetched once from huggingface.co (some hundred MB) when you click Tag pictures."));
            return null;
        }
        return small(tuner.t("It knows the pictures that the embedded model draws and no others: good for a try. For photos and drawings choose a WD14 model."));
    }

    const agreement = () => (form.second ? [choice("agreement", tuner.t("Of two taggers"), [["any", tuner.t("tags that one of them has found")], ["all", tuner.t("tags that both have found")]])] : []);

    // One tagger's thresholds; live while they are dragged.
    function sliders(model) {
        const now = thresholds(model), source = usual(model).source;
        const slider = (key, label) => {
            const number = h("output", { for: `tuner-d-t-${key}` }, now[key].toFixed(2));
            const input = h("input", { type: "range", id: model === form.second ? `tuner-d-t-${key}-2` : `tuner-d-t-${key}`, min: 0.05, max: 1, step: 0.01, value: now[key], oninput: () => moved(DRAG), onchange: () => moved(0) });
            const moved = (wait) => {
                form.thresholds[model] = { ...thresholds(model), [key]: Number(input.value) };
                tuner.text(number, Number(input.value).toFixed(2));
                again(wait);
            };
            return h("label", { class: "tuner-d-slider" }, h("span", {}, label), number, input);
        };
        const reset = form.thresholds[model] ? [h("button", { type: "button", class: "tuner-d-link", onclick: () => { delete form.thresholds[model]; draw(); again(0); } }, tuner.t("as published"))] : [];
        return [h("fieldset", { class: "tuner-d-sliders" }, h("legend", {}, form.second ? nameOf(model) : tuner.t("Thresholds")), slider("general", tuner.t("Tags")), known(model) && known(model).embedded ? null : slider("character", tuner.t("Names of characters")),
            source && known(model) && !known(model).embedded ? h("small", {}, tuner.t("Published: {0}", usual(model).general)) : null, ...reset)];
    }

    function rules() {
        const tick = (key, label) => h("label", { class: "tuner-tick" }, h("input", { type: "checkbox", id: `tuner-d-t-${key}`, checked: form[key], onchange: (event) => { form[key] = event.target.checked; again(0); } }), label);
        return h("details", { open: form.more, ontoggle: (event) => { form.more = event.target.open; event.stopPropagation(); } }, h("summary", {}, tuner.t("Rules for tags")), h("div", { class: "tuner-d-rules" },
            field("exclude", tuner.t("Never these tags")), field("always", tuner.t("Always these tags, first"), tuner.t("such as the trigger word")), field("most", tuner.t("At most so many tags"), tuner.t("empty: all")),
            tick("rating", tuner.t("Add the rating")), tick("underscores", tuner.t("Keep underscores")), tick("escape", tuner.t("Backslashes before parentheses"))));
    }

    function field(key, label, help = "") {
        const id = `tuner-d-t-${key}`;
        const input = h("input", { type: "text", id, value: form[key], spellcheck: "false", autocomplete: "off", inputmode: key === "most" ? "numeric" : null, oninput: () => { form[key] = input.value; again(DRAG); } });
        return h("div", { class: "tuner-d-field" }, h("label", { for: id }, label), ["exclude", "always"].includes(key) ? data.suggesting(input) : input, help ? h("small", {}, help) : null);
    }

    // ---- scores and previews ----

    async function tag() {
        const chosen = choices();
        if (!chosen.length) throw new Error(tuner.t("Name the .onnx file."));
        await look("tags/score", { taggers: chosen.map(nameOf) }, () => { for (const choice of chosen) seen.add(`${folder} ${nameOf(choice)}`); });
    }

    const describe = () => look("captions/make", { captioner: form.model });

    // A model looks at the pictures; then what would be written is shown.
    async function look(path, asked, done = () => {}) {
        if (data.view) await data.view.flush();
        let found = null;
        try {
            found = await data.begin(path, { ...asked, mode: form.mode, ...data.scope().order });
            done();
        } finally { // also what a stopped run has made is there
            await load();
            draw();
        }
        if (found.told.length) data.say(found.told.slice(0, 3).map((text) => tuner.said(text)).join(" "), true);
        if (!found.pictures) { data.say(tuner.t("All of these pictures have captions. Choose what happens to captions that are there.")); return; }
        await plan(true);
        if (data.view) await data.view.refresh();
    }

    function again(wait) {
        clearTimeout(timer);
        timer = setTimeout(data.doing(() => plan()), wait);
    }

    async function plan(go = false) {
        const mine = ++asked, chosen = kept();
        const line = document.getElementById("tuner-d-t-moved");
        if (!chosen.length) { data.showPlan(null, slot); if (line) tuner.text(line, ""); return; }
        const found = await (words() ? data.send("captions/plan", { captioner: form.model, mode: form.mode, ...data.scope().order }) : data.send("tags/plan", { ...order(chosen), ...data.scope().order }));
        if (mine !== asked || !slot.isConnected) return;
        const tags = (sign, counts) => (counts.length ? `${sign} ${counts.map(([tag, n]) => `${tag} (${n})`).join(", ")}` : "");
        const missing = !found.unscored ? "" : words() ? tuner.count(found.unscored, "{0} picture was not described by this model yet: click Describe.", "{0} pictures were not described by this model yet: click Describe.")
            : tuner.count(found.unscored, "{0} picture has no scores of this tagger yet: click Tag.", "{0} pictures have no scores of this tagger yet: click Tag.");
        tuner.text(document.getElementById("tuner-d-t-moved"), [missing, tags("+", found.came || []), tags("−", found.went || [])].filter(Boolean).join("\n"));
        data.showPlan(found, slot, go);
    }

    // ---- one picture ----

    // The tags that its caption lacks, each to be added with a click.
    async function viewed(panel, item) {
        if (!data.folder.editable) return;
        try {
            if (!list || folder !== data.folder.id) await load();
            const chosen = kept().length && !words() ? kept() : list.filter((one) => one.kept && !one.words).slice(0, 1).map((one) => one.name);
            if (!chosen.length) return;
            const { tags } = await data.send("tags/lacking", { ...order(chosen), row: item.row });
            const below = panel.querySelector(".tuner-d-adding");
            if (data.view.row !== item.row || !below || !tags.length || panel.querySelector(".tuner-d-lacking")) return;
            below.before(h("div", { class: "tuner-d-lacking" }, h("small", {}, tuner.t("The tagger also sees (a click adds it):")), h("ul", { class: "tuner-d-chips" }, tags.slice(0, MOST).map((pair) => chip(item.row, ...pair)))));
        } catch (failure) {
            data.say(failure.message, true);
        }
    }

    function chip(row, tag, score) {
        const add = data.doing(async () => { await data.view.flush(); await data.edit("add", { tags: [tag], where: "last" }, [row]); });
        return h("li", {}, h("button", { type: "button", class: "tuner-d-more", "aria-label": tuner.t("Add {0}", tag), onclick: add }, `+ ${tag} `, h("small", {}, score.toFixed(2))));
    }
})(window.tuner);

// The tools: which one, the fields that it asks and the files there are. What a tool asks is told by the server, out of its own arguments.
"use strict";

(function (tuner) {
    const { h } = tuner;
    const WAIT = 350, SHOWN = 80; // ms after the last key before the fields are checked; files that a list shows at once
    const tools = Object.assign(tuner.tools = tuner.tools || {}, { forms: [], files: [], name: "", kept: {}, ready: true }); // kept: what was filled in, by tool
    let timer = null, asked = 0, marks = {}, checked = {};
    const byId = (id) => document.getElementById(id);

    tools.form = () => tools.forms.find((form) => form.name === tools.name);
    tools.values = () => (tools.kept[tools.name] = tools.kept[tools.name] || {});
    const kindOf = (text) => (tools.files.find((file) => file.name === text || file.path === text) || {}).kind || "";

    // A lower-case name out of a report, as a label.
    tools.word = (name) => tuner.t(name[0].toUpperCase() + name.slice(1));

    (tuner.views = tuner.views || { all: [] }).all.push({ name: "tools", label: () => tuner.t("Tools"), box: "tuner-toolbox", opened: () => opened() });
    Object.defineProperty(tools, "open", { get: () => tuner.views.open === "tools" });

    // Once the tools are looked at: what they ask, the files, and the job that goes or was last.
    async function opened() {
        try {
            if (!tools.forms.length) tools.forms = await tuner.get("tools");
            await Promise.all([tools.look(), tools.refreshFiles()]);
            if (!tools.name) choose(tools.job ? tools.job.tool : tools.forms[0].name, tools.job);
        } catch (error) {
            byId("tuner-tools-root").replaceChildren(h("p", { class: "tuner-bad-text", role: "alert" }, error.message));
        }
    }

    tools.refreshFiles = async () => { tools.files = await tuner.get("tools/files"); };

    // Drawn anew where the page is, in another language too; what was filled in stays.
    tools.mount = function () {
        if (tools.name) draw();
    };

    const choose = tools.choose = function (name, job) {
        tools.name = name;
        [marks, checked] = [{}, {}];
        if (job && !tools.kept[name]) tools.kept[name] = { ...job.values };
        draw();
        check();
    };

    // ---- drawing ----

    function draw() {
        const form = tools.form(), fields = form.fields.filter((field) => field.kind !== "recipe");
        const list = h("div", { class: "tuner-tool-list", role: "radiogroup", "aria-label": tuner.t("Tools") }, tools.forms.map(card));
        list.addEventListener("keydown", (event) => {
            const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key], at = tools.forms.indexOf(form);
            if (!step) return;
            event.preventDefault();
            choose(tools.forms[(at + step + tools.forms.length) % tools.forms.length].name);
            byId("tuner-tools-root").querySelector("[role=radio][aria-checked=true]").focus();
        });
        const more = fields.filter((field) => field.more);
        tools.message = h("div", { class: "tuner-tool-message", role: "alert", hidden: true });
        tools.button = h("button", { type: "button", class: "tuner-button tuner-strong", id: "tuner-tool-start", onclick: tools.doing(start) }, tuner.t(form.label));
        tools.jobBox = h("section", { class: "tuner-job", hidden: true });
        byId("tuner-tools-root").replaceChildren(h("div", { class: "tuner-tools-page" }, list, h("div", { class: "tuner-tool" },
            h("h3", {}, tuner.t(form.label)), h("p", {}, tuner.t(form.text)),
            fields.filter((field) => !field.more).map(drawField),
            more.length ? h("details", { class: "tuner-tool-more" }, h("summary", {}, tuner.t("More")), more.map(drawField)) : null,
            tools.message, h("div", { class: "tuner-buttons" }, tools.button), tools.jobBox)));
        fit();
        mark();
        tools.drawJob(true);
    }

    function card(form) {
        const chosen = form.name === tools.name;
        return h("button", { type: "button", role: "radio", "aria-checked": String(chosen), tabindex: chosen ? 0 : -1, "data-tool": form.name, onclick: () => choose(form.name) },
            h("strong", {}, tuner.t(form.label)), h("span", {}, tuner.t(form.text)));
    }

    const KINDS = { loras: rows, file: picker, flag: box, choice: select, out: named, picture: line, number: line };

    function drawField(field) {
        const id = `tuner-t-${field.key}`, [low, high] = [field.low, field.high];
        const limits = low === null ? "" : high === null ? ` (≥ ${low})` : ` (${low}–${high})`;
        const told = h("small", { id: `${id}-help` }, tuner.t(field.help) + limits), control = KINDS[field.kind](field, id);
        const head = field.kind === "loras" ? h("legend", {}, tuner.t(field.label)) : h("label", { for: id }, tuner.t(field.label));
        const parts = field.kind === "flag" ? [h("div", { class: "tuner-tick" }, control, head), told] : [head, told, control];
        return h(field.kind === "loras" ? "fieldset" : "div", { class: "tuner-tool-field", "data-key": field.key, "data-kind": field.kind }, parts);
    }

    const given = (field) => tools.values()[field.key] ?? field.value;

    function set(field, value) {
        tools.values()[field.key] = value;
        fit();
        check();
    }

    function line(field, id) {
        return h("input", { type: "text", id, value: String(given(field)), placeholder: field.empty ? tuner.t(field.empty) : null, inputmode: field.kind === "number" ? "decimal" : null,
            "aria-describedby": `${id}-help`, oninput: (event) => set(field, event.target.value) });
    }

    function box(field, id) {
        return h("input", { type: "checkbox", id, checked: given(field) === true, "aria-describedby": `${id}-help`, onchange: (event) => set(field, event.target.checked) });
    }

    function select(field, id) {
        const choices = [...(field.value === "" ? [["", tuner.t(field.empty)]] : []), ...field.choices.map((name) => [name, tuner.t(name)])];
        return h("select", { id, "aria-describedby": `${id}-help`, onchange: (event) => set(field, event.target.value) },
            choices.map(([name, label]) => h("option", { value: name, selected: name === given(field) }, label)));
    }

    // The new file's name: ours as long as nobody writes another one.
    function named(field, id) {
        const input = h("input", { type: "text", id, value: given(field) || checked.out || "", "aria-describedby": `${id}-help`, oninput: (event) => set(field, event.target.value.trim()) });
        return h("div", {}, input, h("small", { class: "tuner-tool-folder" }));
    }

    function picker(field, id) {
        return tools.picker({ id, value: given(field), kinds: field.of, told: `${id}-help`, empty: field.empty ? tuner.t(field.empty) : tuner.t("Choose a file, or type its path"), set: (value) => set(field, value) });
    }

    // ---- files to choose from ----

    // An input that takes any path and shows the files whose names hold what is typed.
    tools.picker = function ({ id, value, kinds, told, label, empty, set: taken }) {
        const input = h("input", { type: "text", id, value: value || "", placeholder: empty, role: "combobox", autocomplete: "off", spellcheck: "false", "aria-autocomplete": "list",
            "aria-expanded": "false", "aria-controls": `${id}-list`, "aria-describedby": told, "aria-label": label });
        const list = h("ul", { role: "listbox", id: `${id}-list`, class: "tuner-options", hidden: true }), box_ = h("div", { class: "tuner-picker" }, input, list);
        let at = -1;
        const fits = (file) => (kinds.length ? kinds.includes(file.kind) || (file.kind === "" && !kinds.includes("recipe")) : file.kind !== "recipe");
        const close = () => { list.hidden = true; input.setAttribute("aria-expanded", "false"); input.removeAttribute("aria-activedescendant"); };
        const take = (file) => { input.value = file.name; close(); taken(file.name); };
        function show() {
            const text = input.value.toLowerCase(), exact = tools.files.some((file) => file.name === input.value), words = exact ? [] : text.split(/\s+/).filter(Boolean);
            const found = tools.files.filter(fits).filter((file) => words.every((word) => file.path.toLowerCase().includes(word)));
            at = -1;
            list.replaceChildren(...found.slice(0, SHOWN).map((file, i) => h("li", { role: "option", id: `${id}-${i}`, "aria-selected": "false", onmousedown: (event) => { event.preventDefault(); take(file); } },
                h("span", {}, file.path.split(/[\\/]/).pop()), h("small", {}, [tools.kind(file.kind), tuner.bytes(file.bytes), file.path.split(/[\\/]/).slice(0, -1).join("/")].filter(Boolean).join(" · ")))),
                ...(found.length > SHOWN ? [h("li", { class: "tuner-rest" }, tuner.t("and {0} more: type a part of the name", found.length - SHOWN))] : []),
                ...(found.length ? [] : [h("li", { class: "tuner-rest" }, tuner.t("No such file is known here: type its whole path."))]));
            list.found = found;
            list.hidden = false;
            input.setAttribute("aria-expanded", "true");
        }
        function move(step) {
            const options = [...list.querySelectorAll("[role=option]")];
            if (list.hidden) return show();
            if (!options.length) return;
            at = (at + step + options.length) % options.length;
            options.forEach((option, i) => option.setAttribute("aria-selected", String(i === at)));
            options[at].scrollIntoView({ block: "nearest" });
            input.setAttribute("aria-activedescendant", options[at].id);
        }
        input.addEventListener("click", show);
        input.addEventListener("blur", close);
        input.addEventListener("input", () => {
            show();
            if (tools.files.some((file) => file.name === input.value)) close(); // nothing is left to choose, and the list would lie over what comes next
            taken(input.value.trim());
        });
        input.addEventListener("keydown", (event) => {
            if (tuner.composing(event)) return;
            const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
            if (step) { event.preventDefault(); move(step); }
            else if (event.key === "Enter" && !list.hidden && at >= 0) { event.preventDefault(); take(list.found[at]); }
            else if (event.key === "Escape") close();
        });
        return box_;
    };

    tools.kind = (kind) => ({ checkpoint: tuner.t("Checkpoint"), lora: tuner.t("LoRA"), embedding: tuner.t("Embedding"), hypernetwork: tuner.t("Hypernetwork"),
        control: tuner.t("ControlNet"), vae: tuner.t("VAE"), recipe: tuner.t("Recipe") }[kind] || "");

    // ---- several LoRAs with weights, and recipes ----

    function rows(field, id) {
        const given_ = tools.values().loras = (tools.values().loras || []).map((row) => ({ file: row.file, unet: row.unet ?? row.weight ?? 1, text_encoder: row.text_encoder ?? row.weight ?? 1 }));
        if (!given_.length) given_.push({ file: "", unet: 1, text_encoder: 1 });
        const changed = () => { check(); };
        const again = () => { byId("tuner-tools-root").querySelector("[data-key=loras] .tuner-rows").replaceWith(rowsBox()); changed(); };
        const rowsBox = () => h("div", { class: "tuner-rows" }, given_.map((row, i) => loraRow(row, i)));
        function loraRow(row, i) {
            const weight = (key, label) => h("label", {}, h("small", {}, label), h("input", { type: "text", inputmode: "decimal", value: String(row[key]), "aria-label": tuner.t("{0}: weight of LoRA {1}", label, i + 1), oninput: (event) => {
                const before = String(row[key]), both = key === "unet" && String(row.text_encoder) === before, other = event.target.closest(".tuner-row-lora").querySelector("[data-part=text_encoder] input");
                row[key] = event.target.value;
                if (both) row.text_encoder = other.value = event.target.value; // one weight for both, until somebody sets them apart
                changed();
            } }));
            const named_ = (part, label) => { const made = weight(part, label); made.dataset.part = part; return made; };
            return h("div", { class: "tuner-row-lora" },
                tools.picker({ id: `${id}-${i}`, value: row.file, kinds: field.of, label: `LoRA ${i + 1}`, empty: tuner.t("Choose a file, or type its path"), set: (value) => { row.file = value; changed(); } }),
                named_("unet", tuner.t("UNet")), named_("text_encoder", tuner.t("Text encoder")),
                h("button", { type: "button", class: "tuner-button", title: tuner.t("Remove"), "aria-label": tuner.t("Remove LoRA {0}", i + 1), onclick: () => { given_.splice(i, 1); if (!given_.length) given_.push({ file: "", unet: 1, text_encoder: 1 }); again(); } }, "✕"));
        }
        const add = h("button", { type: "button", class: "tuner-button", id: "tuner-add-lora", onclick: () => { given_.push({ file: "", unet: 1, text_encoder: 1 }); again(); byId(`${id}-${given_.length - 1}`).focus(); } }, tuner.t("Add a LoRA"));
        return h("div", {}, rowsBox(), h("div", { class: "tuner-buttons" }, add), recipe(given_, again));
    }

    function recipe(given_, again) {
        const field = tools.form().fields.find((one) => one.kind === "recipe");
        if (!field) return null;
        let file = "";
        const load = tools.doing(async () => {
            const found = (await tuner.send("tools/recipes/read", { file })).answer;
            given_.splice(0, given_.length, ...found);
            again();
        });
        const name = h("input", { type: "text", id: "tuner-recipe-name", "aria-label": tuner.t("Name of the recipe"), placeholder: tuner.t("Name of the recipe") });
        const save = tools.doing(async () => {
            const path = (await tuner.send("tools/recipes/save", { name: name.value.trim(), loras: filled(given_) })).answer;
            await tools.refreshFiles();
            tools.say(tuner.t("Kept as {0}.", path));
        });
        const chosen = tools.picker({ id: "tuner-t-recipe", value: "", kinds: field.of, label: tuner.t(field.label), empty: tuner.t("Choose a file, or type its path"), set: (value) => { file = value; } });
        return h("details", { class: "tuner-tool-more", "data-key": "recipe" }, h("summary", {}, tuner.t(field.label)), h("small", {}, tuner.t(field.help)),
            h("div", { class: "tuner-recipe" }, chosen, h("button", { type: "button", class: "tuner-button", id: "tuner-recipe-load", onclick: load }, tuner.t("Load the recipe")),
                name, h("button", { type: "button", class: "tuner-button", id: "tuner-recipe-save", onclick: save }, tuner.t("Keep as recipe"))));
    }

    const number = (text) => (String(text).trim() !== "" && Number.isFinite(Number(text)) ? Number(text) : String(text));
    const filled = (loras) => loras.filter((row) => row.file).map((row) => ({ file: row.file, unet: number(row.unet), text_encoder: number(row.text_encoder) }));

    // What is sent: fields that have no meaning for the chosen file are left out.
    function sent() {
        const values = {};
        for (const field of tools.form().fields) {
            if (field.kind === "recipe" || !applies(field) || tools.values()[field.key] === undefined) continue;
            values[field.key] = field.kind === "loras" ? filled(tools.values().loras) : tools.values()[field.key];
        }
        return values;
    }

    // ---- checking ----

    function applies(field) {
        const first = tools.form().fields.find((one) => one.kind === "file"), kind = first && field.only ? kindOf(given(first)) : "";
        return !kind || kind === field.only;
    }

    // Shows the fields that matter for what has been chosen.
    function fit() {
        for (const field of tools.form().fields) {
            const element = byId("tuner-tools-root").querySelector(`[data-key=${field.key}]`);
            const picture = field.key === "force" && !tools.form().fields.some((one) => one.kind === "out");
            if (element) tuner.show(element, applies(field) && (field.key !== "force" || checked.exists || given(field) === true || (picture && Boolean(tools.values().picture))));
        }
    }

    function check() {
        clearTimeout(timer);
        timer = setTimeout(tools.doing(async () => {
            const mine = ++asked, answer = await tuner.send(`tools/${tools.name}/check`, { values: sent() });
            if (mine !== asked) return;
            take(answer, answer.problems);
            if (tools.message.dataset.wrong && !Object.keys(answer.problems).length && !Object.keys(answer.missing).length) tools.say("");
        }), WAIT);
    }
    tools.check = check;

    function take(answer, problems) {
        checked = answer;
        marks = problems;
        const out = byId("tuner-t-out");
        if (out && !tools.values().out && out !== document.activeElement) out.value = answer.out;
        const folder = byId("tuner-tools-root").querySelector(".tuner-tool-folder");
        if (folder) tuner.text(folder, tuner.t("Goes into {0}", answer.folder));
        fit();
        mark();
    }

    function mark() {
        for (const element of byId("tuner-tools-root").querySelectorAll("[data-key]")) {
            const text = tuner.said(marks[element.dataset.key]), id = `tuner-t-${element.dataset.key}-error`;
            let error = byId(id);
            if ((error ? error.textContent : "") === text) continue;
            if (error) error.remove();
            element.classList.toggle("tuner-bad", Boolean(text));
            for (const input of element.querySelectorAll("input, select")) input.setAttribute("aria-invalid", Boolean(text));
            if (text) element.append(h("p", { class: "tuner-error", id, role: "alert" }, text));
        }
    }

    async function start() {
        clearTimeout(timer);
        const mine = ++asked, answer = await tuner.send(`tools/${tools.name}/check`, { values: sent() }), wrong = { ...answer.missing, ...answer.problems };
        if (mine !== asked) return;
        take(answer, wrong);
        const first = byId("tuner-tools-root").querySelector(".tuner-tool-field.tuner-bad");
        if (Object.keys(wrong).length) {
            const folded = first && first.closest("details");
            if (folded) folded.open = true;
            tools.say(tuner.t("Something has to be put right first."), true);
            tools.message.dataset.wrong = "true";
            if (first) first.querySelector("input, select").focus();
            return;
        }
        await tuner.send(`tools/${tools.name}/start`, { values: sent() });
        await tools.look();
    }

    // ---- messages ----

    tools.say = function (text, bad = false) {
        if (!tools.message) return;
        tuner.text(tools.message, text);
        delete tools.message.dataset.wrong;
        tools.message.classList.toggle("tuner-bad-text", bad);
        tuner.show(tools.message, Boolean(text));
    };

    // What a button does: runs it, and shows the sentence of a refusal above the button that starts the tool.
    tools.doing = (action) => async (event) => {
        const button = event && event.currentTarget;
        if (button && button.getAttribute("aria-busy") === "true") return;
        if (button) { button.setAttribute("aria-busy", "true"); tools.say(""); }
        try {
            await action();
        } catch (error) {
            tools.say(error.message, true);
        } finally {
            if (button) button.removeAttribute("aria-busy");
        }
    };
})(window.tuner);

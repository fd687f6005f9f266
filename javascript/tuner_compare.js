// The comparison: what one picture is made of, the files on the model, up to three axes, and what a grid of them would be. The grid itself is drawn by tuner_compare_grid.js.
"use strict";

(function (tuner) {
    const { h } = tuner;
    const WAIT = 400, KEPT = "tuner-compare"; // ms after the last key before the grid is planned
    const compare = tuner.compare = Object.assign(tuner.compare || {}, { about: null, status: null, ready: true });
    const FRESH = { prompt: "", negative: "", width: 512, height: 512, steps: 20, cfg: 7, sampler: "ddim", seed: 1, clip_skip: 0, run: "", files: [], axes: { x: { kind: "", text: "" }, y: { kind: "", text: "" }, z: { kind: "", text: "" } } };
    const form = compare.form = structuredClone(FRESH);
    let timer = null, asked = 0, plan = null, touched = false; // touched: somebody has filled something in
    const byId = (id) => document.getElementById(id);

    try { Object.assign(form, JSON.parse(localStorage.getItem(KEPT) || "{}")); touched = Boolean(form.prompt); } catch (error) { /* a browser that keeps nothing, or other words */ }

    (tuner.views = tuner.views || { all: [] }).all.push({ name: "compare", label: () => tuner.t("Comparison"), box: "tuner-compare", opened: () => opened() });

    Object.assign(compare, tuner.speaking(() => byId("tuner-c-message")));

    async function opened() {
        try {
            const [about] = await Promise.all([tuner.get("compare"), tuner.tools.refreshFiles()]);
            compare.about = about;
            if (!about.runs.some((run) => run.id === form.run)) form.run = "";
            if (!touched && about.runs.length) await take(about.runs[0].id);
            compare.mount();
            await compare.look();
        } catch (error) {
            byId("tuner-compare-root").replaceChildren(h("p", { class: "tuner-bad-text", role: "alert" }, error.message));
        }
    }

    // A first order for a run: its saves beside each other.
    const suggested = (run) => tuner.send("compare/suggest", { run }), take = async (run) => fill(await suggested(run));

    function fill({ axes, files, ...values }) {
        const known = Object.fromEntries(Object.entries(values).filter(([key]) => key in FRESH)); // an order may say more than this form does
        Object.assign(form, known, { files: structuredClone(files), axes: { ...structuredClone(FRESH.axes), ...structuredClone(axes) } });
        touched = true;
    }

    // The settings of a grid, to change some of them.
    compare.takeOrder = function (order) {
        fill(order);
        const gone = form.run && !compare.about.runs.some((run) => run.id === form.run);
        if (gone) form.run = "";
        keep();
        compare.mount();
        if (order.checkpoint) compare.say(tuner.t("This grid was drawn on {0}, which the form cannot name: choose it as an axis.", order.checkpoint), true);
        else if (gone) compare.say(tuner.t("The run of this grid is gone, so its model is not chosen."), true);
    };

    // From the list of a run's files.
    compare.openRun = async function (run) {
        await take(run);
        keep();
        tuner.views.show("compare");
    };

    // ---- drawing ----

    compare.mount = function () {
        const root = byId("tuner-compare-root");
        if (!compare.about) return;
        root.replaceChildren(h("p", { class: "tuner-c-message", id: "tuner-c-message", role: "alert", hidden: true }), h("div", { class: "tuner-c-page" },
            h("form", { class: "tuner-c-form", onsubmit: (event) => event.preventDefault() }, runs(), base(), files(), axes(), going()),
            h("div", { class: "tuner-c-main" }, h("div", { id: "tuner-c-work", class: "tuner-c-work" }), h("div", { id: "tuner-c-earlier" }), h("div", { id: "tuner-c-grid" }), compare.numbersSection(), compare.runsSection())));
        planSoon(0);
        compare.drawGrid();
    };

    const label = (text, control, id, help = "") => h("div", { class: "tuner-c-field" }, h("label", { for: id }, text), control, help ? h("small", {}, help) : null);

    function runs() {
        if (!compare.about.runs.length) return h("p", { class: "tuner-small" }, tuner.t("No run has saved anything yet. Files of your own can be compared too: add them below."));
        const select = h("select", { id: "tuner-c-run", onchange: compare.doing(async () => {
            const run = form.run = select.value, order = run ? await suggested(run) : null;
            if (form.run !== run) return; // another one was chosen meanwhile
            if (order) fill(order);
            keep();
            compare.mount();
        }) }, h("option", { value: "" }, tuner.t("none: the model that is there")), compare.about.runs.map((run) => h("option", { value: run.id, selected: run.id === form.run }, `${run.name} (${run.method})`)));
        return label(tuner.t("Saves of a run"), select, "tuner-c-run", tuner.t("Fills the form with its sample prompt and puts its saves beside each other."));
    }

    const RANGES = { width: [64, 4096, 8], height: [64, 4096, 8], steps: [1, 150, 1], cfg: [1, 30], seed: [0, 4294967295, 1], weight: [-16, 16] }; // least, most, and what it is a multiple of
    const LABELS = () => ({ width: tuner.t("Width"), height: tuner.t("Height"), steps: tuner.t("Sampling steps"), cfg: tuner.t("CFG scale"), seed: tuner.t("Seed") });
    const typed = compare.typed = (input) => (input.value === "" ? "" : Number(input.value)); // an emptied field is no number, and not the one that stood there

    // What is wrong with the numbers of the form, a sentence each: what the server says of a body is not meant for people.
    function wrongNumbers() {
        const numbers = Object.entries(LABELS()).map(([key, name]) => [name, form[key], RANGES[key]]);
        const weights = form.files.map((file, i) => (file.name ? [tuner.t("Weight of file {0}", i + 1), file.weight, RANGES.weight] : null));
        return [...numbers, ...weights.filter(Boolean)].map((one) => wrongNumber(...one)).filter(Boolean);
    }

    const wrongNumber = compare.wrongNumber = function (name, value, [low, high, unit]) {
        if (typeof value !== "number") return tuner.t("{0} is empty; write a number.", name);
        if (!(value >= low && value <= high)) return tuner.t("{0}: {1} is not between {2} and {3}.", name, value, low, high);
        if (!unit || value % unit === 0) return "";
        return unit === 1 ? tuner.t("{0}: {1} is not a whole number.", name, value) : tuner.t("{0}: {1} is not a multiple of {2}.", name, value, unit);
    };

    function base() {
        const text = (key, name, rows) => { const id = `tuner-c-${key}`; return label(name, h("textarea", { id, rows, oninput: (event) => set(key, event.target.value) }, form[key]), id); };
        const number = (key, step) => { const id = `tuner-c-${key}`, [low, high] = RANGES[key]; return label(LABELS()[key], h("input", { type: "number", id, min: low, max: high, step, value: form[key], oninput: (event) => set(key, typed(event.target)) }), id); };
        if (!compare.about.samplers.includes(form.sampler)) form.sampler = compare.about.samplers[0]; // it was hidden or renamed since this browser or a grid has kept it
        const sampler = h("select", { id: "tuner-c-sampler", onchange: () => set("sampler", sampler.value) }, compare.about.samplers.map((name) => h("option", { value: name, selected: name === form.sampler }, name)));
        return h("div", { class: "tuner-c-base" }, text("prompt", tuner.t("Prompt"), 2), text("negative", tuner.t("Negative prompt"), 1),
            h("div", { class: "tuner-c-numbers" }, number("width", 8), number("height", 8), number("steps", 1), number("cfg", 0.5), number("seed", 1), label(tuner.t("Sampler"), sampler, "tuner-c-sampler")));
    }

    function files() {
        const row = (file, i) => h("div", { class: "tuner-c-file" },
            tuner.tools.picker({ id: `tuner-c-file-${i}`, value: file.name, kinds: ["lora", "embedding", "hypernetwork"], label: tuner.t("File {0}", i + 1), empty: tuner.t("Choose a file"), set: (value) => { file.name = value; changed(); } }),
            h("input", { type: "number", step: "0.05", min: -16, max: 16, value: file.weight, "aria-label": tuner.t("Weight of file {0}", i + 1), oninput: (event) => { file.weight = typed(event.target); changed(); } }),
            h("button", { type: "button", class: "tuner-button", title: tuner.t("Remove"), "aria-label": tuner.t("Remove file {0}", i + 1), onclick: () => { form.files.splice(i, 1); changed(); compare.mount(); } }, "✕"));
        return h("fieldset", { class: "tuner-c-set" }, h("legend", {}, tuner.t("Files on every picture")), form.files.map(row),
            h("button", { type: "button", class: "tuner-button", id: "tuner-c-add", onclick: () => { form.files.push({ name: "", weight: 1, blocks: "" }); compare.mount(); byId(`tuner-c-file-${form.files.length - 1}`).focus(); } }, tuner.t("Add a file")));
    }

    const NAMES = { x: () => tuner.t("Columns (X)"), y: () => tuner.t("Rows (Y)"), z: () => tuner.t("Below each other (Z)") };

    function axes() {
        return h("fieldset", { class: "tuner-c-set" }, h("legend", {}, tuner.t("What changes")), Object.keys(NAMES).map(axis));
    }

    function axis(name) {
        const mine = form.axes[name], kind = compare.about.axes.find((one) => one.name === mine.kind), id = `tuner-c-axis-${name}`;
        const select = h("select", { id, onchange: () => { Object.assign(mine, { kind: select.value, text: "" }); changed(); compare.mount(); byId(select.value ? `${id}-text` : id).focus(); } },
            h("option", { value: "" }, tuner.t("nothing")), compare.about.axes.map((one) => h("option", { value: one.name, selected: one.name === mine.kind }, tuner.t(one.label))));
        const input = kind && h("textarea", { id: `${id}-text`, rows: kind.lines ? 3 : 1, "aria-label": tuner.t("Values of {0}", NAMES[name]()), "aria-describedby": `${id}-help`, spellcheck: "false", oninput: () => { mine.text = input.value; changed(); } }, mine.text);
        const offered = kind && kind.offered.length ? h("select", { class: "tuner-c-offer", "aria-label": tuner.t("Add a value to {0}", NAMES[name]()), onchange: () => {
            const quoted = !kind.lines && offered.value.includes(",") ? `"${offered.value}"` : offered.value;
            mine.text = input.value = [mine.text.trim().replace(/,$/, ""), quoted].filter(Boolean).join(kind.lines ? "\n" : ", ");
            offered.value = "";
            changed();
        } }, h("option", { value: "" }, tuner.t("add…")), kind.offered.map((text) => h("option", { value: text }, text))) : null;
        return h("div", { class: "tuner-c-axis" }, h("label", { for: id }, NAMES[name]()), select, input, offered, kind ? h("small", { id: `${id}-help` }, tuner.marked(tuner.t(kind.help))) : null);
    }

    function going() {
        return h("div", { class: "tuner-c-go" }, h("p", { id: "tuner-c-plan", class: "tuner-small", role: "status" }), h("ul", { id: "tuner-c-problems", class: "tuner-small" }),
            h("button", { type: "button", id: "tuner-c-draw", class: "tuner-button tuner-strong", onclick: compare.doing(start) }, tuner.t("Draw")));
    }

    // ---- planning ----

    function keep() {
        try { localStorage.setItem(KEPT, JSON.stringify(form)); } catch (error) { /* a browser that keeps nothing */ }
    }

    function changed() {
        touched = true;
        keep();
        planSoon(WAIT);
    }

    function set(key, value) {
        form[key] = value;
        changed();
    }

    const body = () => ({ ...form, files: form.files.filter((file) => file.name) });

    function planSoon(wait) {
        clearTimeout(timer);
        timer = setTimeout(async () => {
            const mine = ++asked, wrong = wrongNumbers();
            if (wrong.length) return planned(null, wrong.join("\n"));
            try {
                const found = await tuner.send("compare/plan", body());
                if (mine === asked) planned(found, "");
            } catch (error) {
                if (mine === asked) planned(null, error.message);
            }
        }, wait);
    }

    compare.planAgain = () => planSoon(0);

    compare.pictures = (n) => tuner.count(n, "{0} picture", "{0} pictures");

    function planned(found, error) {
        plan = found;
        const line = byId("tuner-c-plan");
        if (!line) return;
        const [columns, rows, planes] = found ? found.shape : [0, 0, 0];
        const size = found ? `${columns} × ${rows}${planes > 1 ? ` × ${planes}` : ""}` : "";
        tuner.text(line, error || [`${compare.pictures(found.count)} (${size})`, found.seconds === null ? tuner.t("how long it takes is known after the first ones") : tuner.t("about {0}", tuner.duration(found.seconds))].join(tuner.t(", ")));
        line.classList.toggle("tuner-bad-text", Boolean(error));
        byId("tuner-c-problems").replaceChildren(...(found ? found.problems : []).map((text) => h("li", {}, tuner.said(text))));
        byId("tuner-c-draw").disabled = !found;
    }

    async function start() {
        clearTimeout(timer);
        asked++;
        const wrong = wrongNumbers(); // of a key that was hit a moment ago
        if (wrong.length) return planned(null, wrong.join("\n"));
        plan = await tuner.send("compare/plan", body());
        planned(plan, "");
        const long = plan.seconds === null ? "" : ` ${tuner.t("That takes about {0}.", tuner.duration(plan.seconds))}`;
        if (plan.much && !window.confirm(`${tuner.t("This grid has {0}.", compare.pictures(plan.count))}${long} ${tuner.t("Draw them all?")}`)) return;
        await tuner.send("compare/start", { ...body(), sure: plan.much });
        compare.closeLarge();
        await compare.look();
    }
})(window.tuner);

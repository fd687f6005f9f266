// The grid of a comparison: cells that appear as they are drawn, one of them large with its settings, a row once more, and the save that is kept.
"use strict";

(function (tuner) {
    const { h } = tuner;
    const BUSY = 500, IDLE = 4000, LOST = 5000; // ms between two looks; lost: as in tuner.js
    const compare = tuner.compare = tuner.compare || {};
    let timer = null, known = -1, grid = null, open = null, worked = false, lost = false; // grid: as the server last told it whole; open: the cell that is shown large; worked: at the last look
    const byId = (id) => document.getElementById(id);
    const going = () => compare.status && compare.status.work && ["running", "stopping"].includes(compare.status.work.state);

    // How far the grid is; asks again as long as the view is open.
    compare.look = async function () {
        clearTimeout(timer);
        if (tuner.views.open !== "compare" || !byId("tuner-c-grid")) return;
        try {
            const status = await tuner.get(`compare/status?known=${known}`);
            compare.status = status;
            if (!status.grid) grid = null;
            else if (!status.grid.states && (!grid || grid.name !== status.grid.name)) { known = -1; return void compare.look(); }
            else if (status.grid.states) {
                const other = !grid || grid.name !== status.grid.name;
                if (other && open && open.keep) known = -1; // somebody fills in how a save of this grid is kept: the other grid waits
                else {
                    grid = status.grid;
                    known = grid.version;
                    if (other) { open = null; compare.drawGrid(); } else fill();
                }
            }
            drawWork();
            if (worked !== going()) await drawEarlier();
            if (worked && !going()) compare.planAgain(); // it is known now how long a picture takes
            worked = going();
            if (lost) compare.say("");
            lost = false;
        } catch (error) {
            lost = true;
            compare.say(error instanceof TypeError ? tuner.t("The program does not answer; trying again…") : error.message, true); // a request that fails has the browser's own words
        }
        clearTimeout(timer);
        timer = setTimeout(compare.look, lost ? LOST : going() ? BUSY : IDLE);
    };

    // ---- what goes on ----

    function drawWork() {
        const box = byId("tuner-c-work"), work = compare.status && compare.status.work;
        if (!box) return;
        for (const button of document.querySelectorAll("#tuner-compare .tuner-c-again")) tuner.show(button, !going());
        if (work && work.name === "numbers" && work.state === "done") compare.numbers(work.result);
        if (!work || (work.state === "done" && !work.error)) return box.replaceChildren();
        if (work.state === "failed") return box.replaceChildren(h("p", { class: "tuner-failed", role: "alert" }, tuner.said(work.error)));
        if (work.state === "stopped") return box.replaceChildren(h("p", { class: "tuner-small" }, tuner.t("Stopped; what is done stays.")));
        const left = work.left === null ? "" : ` · ${tuner.t("{0} left", tuner.duration(work.left))}`;
        const bar = h("div", { class: "tuner-bar", role: "progressbar", "aria-valuemin": 0, "aria-valuemax": work.total, "aria-valuenow": work.done, "aria-label": work.name === "numbers" ? tuner.t("Saves measured") : tuner.t("Pictures drawn") }, h("div", { style: `width: ${work.total ? (100 * work.done) / work.total : 0}%` }));
        const far = work.stage === "turn" ? `${tuner.t("Waiting for the WebUI")}…` : `${work.done} / ${work.total}${left}`;
        if (box.querySelector("#tuner-c-stop")) {
            box.querySelector(".tuner-bar").replaceWith(bar);
            tuner.text(box.querySelector(".tuner-numbers"), far);
            return;
        }
        box.replaceChildren(h("div", { class: "tuner-run-head" }, h("span", { class: "tuner-numbers" }, far),
            h("button", { type: "button", id: "tuner-c-stop", class: "tuner-button", onclick: compare.doing(async () => { await tuner.send("compare/stop"); await compare.look(); }) }, tuner.t("Stop"))), bar);
    }

    // ---- grids of before ----

    // A list of them, which a choice opens; nothing where there is none but the one that is shown.
    async function drawEarlier() {
        const { grids } = await tuner.get("compare/grids"), box = byId("tuner-c-earlier");
        if (!box) return;
        if (!grids.some((one) => !grid || one.name !== grid.name)) return box.replaceChildren();
        const title = (one) => [one.name, one.kinds.map((kind) => tuner.t(kind)).join(" × "), compare.pictures(one.pictures), one.prompt.length > 40 ? `${one.prompt.slice(0, 40)}…` : one.prompt].filter(Boolean).join(" · ");
        const select = h("select", { id: "tuner-c-grids", disabled: going(), onchange: compare.doing(async () => {
            if (!select.value) return;
            compare.closeLarge();
            try {
                await tuner.send("compare/open", { name: select.value });
            } catch (error) {
                await drawEarlier(); // the grid that is still there
                throw error;
            }
            await compare.look();
        }) }, grid ? null : h("option", { value: "" }, tuner.t("choose one…")), grids.map((one) => h("option", { value: one.name, selected: grid && one.name === grid.name }, title(one))));
        box.replaceChildren(h("div", { class: "tuner-c-field" }, h("label", { for: "tuner-c-grids" }, tuner.t("Grids drawn so far")), select));
    }

    // ---- the grid ----

    const shown = (label) => (label === "None" ? tuner.t("without files") : label); // the word None alone means something else in a form
    const at = (x, y, z) => (z * grid.shape[1] + y) * grid.shape[0] + x;
    const of = () => `grid=${encodeURIComponent(grid.name)}`; // that of this page, which may not be the shown one any more
    const url = (index) => tuner.url(`compare/cells/${index}?${of()}&v=${grid.version}`);

    compare.drawGrid = function () {
        const box = byId("tuner-c-grid");
        if (!box) return;
        drawEarlier().catch((error) => compare.say(error.message, true));
        if (!grid) {
            box.replaceChildren(h("p", { class: "tuner-c-empty" }, tuner.t("Choose what changes along the columns and rows, and press Draw: each cell is one picture, and everything else stays the same.")));
            return;
        }
        const [columns, rows, planes] = grid.shape, parts = [];
        for (let z = 0; z < planes; z++) {
            if (grid.labels.z[z]) parts.push(h("h4", {}, `${tuner.t(grid.kinds.z)}: ${shown(grid.labels.z[z])}`));
            const head = grid.kinds.x ? h("thead", {}, h("tr", {}, h("td", {}), grid.labels.x.map((label) => h("th", { scope: "col" }, shown(label))))) : null;
            const body = [];
            for (let y = 0; y < rows; y++) {
                const cells = Array.from({ length: columns }, (_, x) => h("td", {}, h("button", { type: "button", class: "tuner-c-cell", "data-cell": at(x, y, z), onclick: compare.doing(() => show(at(x, y, z))) })));
                const again = h("button", { type: "button", class: "tuner-button tuner-c-again", title: tuner.t("Draw this row again"), "aria-label": tuner.t("Draw row {0} again", z * rows + y + 1), onclick: compare.doing(async () => {
                    await tuner.send("compare/again", { grid: grid.name, cells: Array.from({ length: columns }, (_, x) => at(x, y, z)) });
                    await compare.look();
                }) }, "↻");
                body.push(h("tr", {}, h("th", { scope: "row" }, h("span", {}, shown(grid.labels.y[y])), again), cells));
            }
            parts.push(h("div", { class: "tuner-c-scroll", tabindex: 0, role: "region", "aria-label": tuner.t("Grid") }, h("table", { style: `--columns: ${columns}` }, head, h("tbody", {}, body))));
        }
        const save = h("a", { class: "tuner-button", id: "tuner-c-save", href: tuner.url(`compare/grid?${of()}`), download: "" }, tuner.t("Save the grid as one picture"));
        const take = h("button", { type: "button", id: "tuner-c-take", class: "tuner-button", onclick: () => compare.takeOrder(grid.order) }, tuner.t("Put its settings into the form"));
        box.replaceChildren(h("div", { id: "tuner-c-large" }), ...parts, h("div", { class: "tuner-buttons" }, save, take), h("p", { class: "tuner-small" }, tuner.t("Every picture is also a file of its own in {0}.", grid.folder)));
        fill();
        drawLarge();
        drawWork();
    };

    // What was large is put away, with the form of what is kept: another grid was asked for.
    compare.closeLarge = () => { open = null; drawLarge(); };

    // What has changed in the cells.
    function fill() {
        for (const cell of document.querySelectorAll("#tuner-c-grid [data-cell]")) {
            const index = Number(cell.dataset.cell), state = grid.states[index], stamp = `${state}${grid.errors[index] || ""}${state === "drawn" ? cell.dataset.was || "" : ""}`;
            if (cell.dataset.stamp === stamp) continue;
            const names = ["y", "x", "z"].filter((name) => grid.kinds[name]).map((name) => labelOf(index, name)).join(", ");
            cell.disabled = state !== "drawn";
            if (state === "drawn") cell.replaceChildren(h("img", { src: url(index), alt: names || tuner.t("Picture"), loading: "lazy" }));
            else if (state === "failed") cell.replaceChildren(h("span", { class: "tuner-bad-text" }, tuner.said(grid.errors[index])));
            else cell.replaceChildren(h("span", { class: "tuner-c-wait", "aria-label": tuner.t("not drawn yet") }, "…"));
            cell.dataset.stamp = stamp;
        }
        tuner.show(byId("tuner-c-save"), grid.states.includes("drawn"));
    }

    function labelOf(index, name) {
        const [columns, rows] = grid.shape, place = { x: index % columns, y: Math.floor(index / columns) % rows, z: Math.floor(index / columns / rows) };
        return shown(grid.labels[name][place[name]]);
    }

    // ---- one of them large ----

    async function show(index) {
        open = { index, about: await tuner.get(`compare/cells/${index}/about?${of()}`), keep: null };
        drawLarge();
        byId("tuner-c-large").scrollIntoView({ block: "nearest" });
        byId("tuner-c-close").focus();
    }

    function close() {
        const index = open && open.index;
        open = null;
        drawLarge();
        const cell = document.querySelector(`#tuner-c-grid [data-cell="${index}"]`);
        if (cell) cell.focus();
    }

    function drawLarge() {
        const box = byId("tuner-c-large");
        if (!box) return;
        if (!open) return box.replaceChildren();
        const { index, about } = open, mine = about.files.filter((file) => file.run);
        const copy = h("button", { type: "button", class: "tuner-button", onclick: compare.doing(async () => { await tuner.copied(about.prompt); compare.say(tuner.t("The prompt is copied.")); }) }, tuner.t("Copy the prompt"));
        const keeps = mine.map((file) => h("button", { type: "button", class: "tuner-button tuner-strong", onclick: () => { Object.assign(open, { keep: file, typed: null }); drawLarge(); byId("tuner-c-k-name").focus(); } }, tuner.t("Keep this one ({0})", file.name)));
        box.replaceChildren(h("section", { class: "tuner-c-large", onkeydown: (event) => { if (event.key === "Escape" && !tuner.composing(event)) close(); } }, h("img", { src: url(index), alt: about.prompt }), h("div", {},
            h("pre", {}, about.text), h("div", { class: "tuner-buttons" }, copy, h("a", { class: "tuner-button", href: url(index), download: `cell-${index}.png` }, tuner.t("Download")), keeps,
                h("button", { type: "button", id: "tuner-c-close", class: "tuner-button", onclick: close }, tuner.t("Close"))), open.keep ? keeping(open.keep, index) : null)));
    }

    function keeping(file, index) {
        const run = compare.about.runs.find((one) => one.id === file.run), stem = file.name.replace(/\.[^.]+$/, "");
        const field = (id, label, control) => h("div", { class: "tuner-c-field" }, h("label", { for: id }, label), control);
        const as = open.typed = open.typed || { name: stem.replace(/-\d{6,}$/, ""), words: run ? run.words : "", weight: file.weight, notes: "", others: false }; // over a drawing anew of the page
        const input = (key, more) => h("input", { id: `tuner-c-k-${key}`, value: as[key], oninput: (event) => { as[key] = event.target.value; }, ...more });
        const name = input("name", { type: "text" }), words = input("words", { type: "text" });
        const weight = input("weight", { type: "number", min: 0, max: 16, step: 0.05, oninput: (event) => { as.weight = compare.typed(event.target); } }), notes = h("textarea", { id: "tuner-c-k-notes", rows: 2, oninput: (event) => { as.notes = event.target.value; } }, as.notes);
        const others = h("input", { type: "checkbox", id: "tuner-c-k-others", checked: as.others, onchange: (event) => { as.others = event.target.checked; } });
        const go = h("button", { type: "button", id: "tuner-c-k-go", class: "tuner-button tuner-strong", onclick: compare.doing(async () => {
            const wrong = compare.wrongNumber(tuner.t("Weight on its card"), as.weight, [0, 16]);
            if (wrong) throw new Error(wrong);
            const kept = await tuner.send("compare/keep", { run: file.run, file: file.name, name: as.name.trim(), words: as.words.trim(), weight: as.weight, notes: as.notes, grid: grid.name, cell: index, others: as.others ? "trash" : "leave" });
            close();
            compare.about = await tuner.get("compare");
            compare.say(kept.trashed ? tuner.t("Kept as {0}; the other saves are in the folder trash of the run.", kept.file) : tuner.t("Kept as {0}.", kept.file));
        }) }, tuner.t("Keep"));
        return h("fieldset", { class: "tuner-c-set" }, h("legend", {}, tuner.t("Keep {0}", file.name)), field("tuner-c-k-name", tuner.t("Name"), name), field("tuner-c-k-words", tuner.t("Words that its card puts into the prompt"), words),
            field("tuner-c-k-weight", tuner.t("Weight on its card"), weight), field("tuner-c-k-notes", tuner.t("Notes"), notes),
            h("div", { class: "tuner-c-tick" }, others, h("label", { for: "tuner-c-k-others" }, tuner.t("Move the run's other saves to its trash"))), h("p", { class: "tuner-small" }, tuner.t("This picture becomes the picture of the card.")), h("div", { class: "tuner-buttons" }, go));
    }
})(window.tuner);

// The numbers of a run's saves: what each has learned against how far it has moved what the run was not about, and the step that they suggest.
"use strict";

(function (tuner) {
    const { h } = tuner;
    const LEARNED = "#e8590c", DRIFT = "#1971c2", PAD = { left: 56, right: 56, top: 12, bottom: 22 };
    const compare = tuner.compare = tuner.compare || {};
    const byId = (id) => document.getElementById(id);
    const FLAGS = () => ({ overfitting: tuner.t("overfitting"), underfitting: tuner.t("underfitting") });
    const LOOKS = () => ({ image: tuner.t("Like the training pictures"), text: tuner.t("Like the prompts"), nearest: tuner.t("Distance of the nearest training picture"), diversity: tuner.t("Diversity") }); // by CLIP
    let chosen = "", result = null, open = false;

    compare.numbersSection = function () {
        const { runs } = compare.about;
        if (!runs.length) return h("div", {});
        if (!runs.some((run) => run.id === chosen)) chosen = compare.form.run || runs[0].id;
        const select = h("select", { id: "tuner-c-n-run", onchange: () => { chosen = select.value; draw(); } }, runs.map((run) => h("option", { value: run.id, selected: run.id === chosen }, run.name)));
        const go = h("button", { type: "button", id: "tuner-c-n-go", class: "tuner-button tuner-strong", onclick: compare.doing(async () => {
            await tuner.send("compare/numbers", { run: chosen });
            await compare.look();
        }) }, tuner.t("Measure"));
        const box = h("details", { class: "tuner-c-measure", open, ontoggle: () => { open = box.open; draw(); } }, h("summary", {}, tuner.t("Numbers: which step is the best?")),
            h("p", { class: "tuner-small" }, tuner.t("Measures each save on the same pictures and the same noise. What was measured is kept in the run's folder.")),
            h("div", { class: "tuner-c-measured" }, h("div", { class: "tuner-c-field" }, h("label", { for: "tuner-c-n-run" }, tuner.t("Run")), select), go), h("div", { id: "tuner-c-numbers" }));
        return box;
    };

    // What the last measuring gave; drawn once.
    compare.numbers = function (found) {
        if (result && JSON.stringify(found) === JSON.stringify(result) && byId("tuner-c-numbers") && byId("tuner-c-numbers").children.length) return;
        result = found;
        draw();
    };

    function draw() {
        const box = byId("tuner-c-numbers");
        if (!box) return;
        if (!result || result.id !== chosen) return box.replaceChildren();
        const { rows, suggestion } = result, taken = suggestion ? suggestion.step : null, more = Object.keys(rows[rows.length - 1].more);
        const columns = [["loss", tuner.t("Loss")], ...(rows.some((row) => row.gain !== null) ? [["gain", tuner.t("Gain of the trigger")]] : []), ["drift", tuner.t("Drift")]];
        const remark = (row) => (!row.files.length ? tuner.t("the model before the run") : row.step === taken ? tuner.t("suggested") : (suggestion && FLAGS()[suggestion.flags[row.step]]) || "");
        const line = (row) => h("tr", { "aria-current": row.files.length && row.step === taken ? "true" : null }, h("th", { scope: "row" }, String(row.step)),
            columns.map(([key]) => h("td", {}, row[key] === null ? "–" : tuner.number(row[key], 3))), more.map((key) => h("td", {}, row.more[key] === undefined ? "–" : tuner.number(row.more[key], 3))), h("td", {}, remark(row)));
        const canvas = h("canvas", { class: "tuner-chart", role: "img", "aria-label": tuner.t("Learned and drift over the steps") });
        const held = rows[0].held_out ? tuner.t("The loss is that of held-out pictures.") : tuner.t("The loss is that of training pictures, for the run holds none out; overfitting shows in it late.");
        box.replaceChildren(...(suggestion ? [h("p", { class: "tuner-c-suggested" }, taken === null ? null : [h("strong", {}, tuner.t("Step {0}:", taken)), " "], tuner.said(suggestion.why))] : []), canvas,
            h("p", { class: "tuner-small tuner-c-legend" }, h("span", {}, h("i", { style: `background: ${LEARNED}` }), tuner.t("learned: how far the loss has fallen")), h("span", {}, h("i", { style: `background: ${DRIFT}` }), tuner.t("drift: how far other prompts have moved"))),
            h("div", { class: "tuner-c-scroll", tabindex: 0, role: "region", "aria-label": tuner.t("Numbers of each save") }, h("table", {}, h("thead", {}, h("tr", {}, [tuner.t("Step"), ...columns.map(([, label]) => label), ...more.map((key) => LOOKS()[key] || key), ""].map((text) => h("th", { scope: "col" }, text)))), h("tbody", {}, rows.map(line)))),
            h("p", { class: "tuner-small" }, held));
        chart(canvas, rows, taken);
    }

    // Learned on the left axis, drift on the right one, the suggested step as a line where there is one.
    function chart(canvas, rows, taken) {
        const width = canvas.clientWidth, height = canvas.clientHeight, scale = window.devicePixelRatio || 1, pen = canvas.getContext("2d");
        if (!width) return;
        [canvas.width, canvas.height] = [width * scale, height * scale];
        pen.scale(scale, scale);
        const base = rows[0].loss, steps = rows[rows.length - 1].step || 1, ink = getComputedStyle(canvas).color;
        const known = (of) => rows.map((row) => [row.step, of(row)]).filter(([, value]) => Number.isFinite(value)); // a save that is broken has no numbers
        const lines = [[LEARNED, known((row) => (base === null || row.loss === null ? null : base - row.loss))], [DRIFT, known((row) => row.drift)]];
        const x = (step) => PAD.left + (step / steps) * (width - PAD.left - PAD.right);
        pen.font = "11px system-ui, sans-serif";
        if (taken !== null) {
            pen.strokeStyle = pen.fillStyle = ink;
            pen.setLineDash([4, 4]);
            pen.beginPath();
            pen.moveTo(x(taken), PAD.top);
            pen.lineTo(x(taken), height - PAD.bottom);
            pen.stroke();
            pen.setLineDash([]);
        }
        lines.forEach(([colour, points], i) => {
            if (!points.length) return;
            const values = points.map(([, value]) => value);
            const low = Math.min(...values, 0), high = Math.max(...values), span = high - low || 1, y = (value) => PAD.top + ((high - value) / span) * (height - PAD.top - PAD.bottom);
            pen.strokeStyle = pen.fillStyle = colour;
            pen.lineWidth = 2;
            pen.beginPath();
            points.forEach(([step, value], n) => (n ? pen.lineTo(x(step), y(value)) : pen.moveTo(x(step), y(value))));
            pen.stroke();
            for (const [step, value] of points) { pen.beginPath(); pen.arc(x(step), y(value), 3, 0, 7); pen.fill(); }
            pen.textAlign = i ? "left" : "right";
            for (const value of [low, high]) pen.fillText(tuner.number(value, 2), i ? width - PAD.right + 8 : PAD.left - 8, y(value) + 4);
        });
        pen.fillStyle = ink;
        pen.textAlign = "center";
        for (const row of rows) pen.fillText(String(row.step), x(row.step), height - 6);
    }
})(window.tuner);

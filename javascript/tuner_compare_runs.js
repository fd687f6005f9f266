// Two runs beside each other: the settings that differ, and their curves over each other.
"use strict";

(function (tuner) {
    const { h } = tuner;
    const COLOURS = ["#e8590c", "#1971c2"], SMOOTH = 0.95, PAD = { left: 52, right: 8, top: 8, bottom: 22 };
    const compare = tuner.compare = tuner.compare || {};
    const chosen = { a: "", b: "" };
    let asked = 0;
    const byId = (id) => document.getElementById(id);

    compare.runsSection = function () {
        const runs = compare.about.runs;
        if (runs.length < 2) return h("div", {});
        for (const [key, i] of [["a", 0], ["b", 1]]) if (!runs.some((run) => run.id === chosen[key])) chosen[key] = runs[i].id;
        const select = (key, label) => {
            const id = `tuner-c-run-${key}`, element = h("select", { id, onchange: compare.doing(async () => { chosen[key] = element.value; await draw(); }) }, runs.map((run) => h("option", { value: run.id, selected: run.id === chosen[key] }, run.name)));
            return h("div", { class: "tuner-c-field" }, h("label", { for: id }, label), element);
        };
        const box = h("details", { class: "tuner-c-runs", ontoggle: compare.doing(async () => { if (box.open) await draw(); }) }, h("summary", {}, tuner.t("Two runs beside each other")),
            h("div", { class: "tuner-c-two" }, select("a", tuner.t("First run")), select("b", tuner.t("Second run"))), h("div", { id: "tuner-c-two" }));
        return box;
    };

    async function draw() {
        const mine = ++asked, found = await tuner.get(`compare/runs?a=${chosen.a}&b=${chosen.b}`), box = byId("tuner-c-two");
        if (mine !== asked) return; // another run was chosen meanwhile
        const shown = (value) => (value === null || value === undefined ? "–" : value === "" ? tuner.t("empty") : String(value));
        const rows = found.settings.map(([name, a, b]) => h("tr", {}, h("th", { scope: "row" }, tuner.settingNamed(name)), h("td", {}, shown(a)), h("td", {}, shown(b))));
        const canvas = h("canvas", { class: "tuner-chart", role: "img", "aria-label": tuner.t("Loss of both runs over their steps") });
        const legend = h("p", { class: "tuner-small tuner-c-legend" }, found.runs.map((run, i) => h("span", {}, h("i", { style: `background: ${COLOURS[i]}` }), `${run.name}: ${told(run)}`)));
        box.replaceChildren(canvas, legend, rows.length ? h("div", { class: "tuner-c-scroll" }, h("table", {}, h("thead", {}, h("tr", {}, [tuner.t("Setting"), ...found.runs.map((run) => run.name)].map((text) => h("th", { scope: "col" }, text)))), h("tbody", {}, rows)))
            : h("p", {}, tuner.t("Both have the same settings.")));
        curves(canvas, found.runs);
    }

    function told(run) {
        const last = smoothed(run.points.filter(([, loss]) => loss !== null)).pop(), parts = [];
        if (last) parts.push(tuner.t("loss {0}", tuner.number(last[1], 3)));
        if (run.validations.length) parts.push(tuner.t("validation {0}", tuner.number(run.validations[run.validations.length - 1][1], 3)));
        return parts.join(", ") || tuner.t("no points");
    }

    function smoothed(points) {
        let mean = null, weight = 0;
        return points.map(([step, loss]) => {
            mean = SMOOTH * (mean || 0) + (1 - SMOOTH) * loss;
            weight = SMOOTH * weight + (1 - SMOOTH);
            return [step, mean / weight];
        });
    }

    // Both losses, smoothed, and the validation losses as dots, on common axes.
    function curves(canvas, runs) {
        const width = canvas.clientWidth || 600, height = canvas.clientHeight || 220, scale = window.devicePixelRatio || 1, pen = canvas.getContext("2d");
        [canvas.width, canvas.height] = [width * scale, height * scale];
        pen.scale(scale, scale);
        const lines = runs.map((run) => smoothed(run.points.filter(([, loss]) => loss !== null))), dots = runs.map((run) => run.validations.filter(([, loss]) => loss !== null));
        const all = [...lines, ...dots].flat();
        if (!all.length) return;
        const steps = Math.max(...all.map(([step]) => step), 1), low = Math.min(...all.map(([, loss]) => loss)), high = Math.max(...all.map(([, loss]) => loss)), span = high - low || 1;
        const x = (step) => PAD.left + (step / steps) * (width - PAD.left - PAD.right), y = (loss) => PAD.top + ((high - loss) / span) * (height - PAD.top - PAD.bottom);
        pen.fillStyle = pen.strokeStyle = getComputedStyle(canvas).color;
        pen.font = "11px system-ui, sans-serif";
        pen.textAlign = "right";
        for (const loss of [low, high]) pen.fillText(tuner.number(loss, 3), PAD.left - 6, y(loss) + 4);
        pen.fillText(String(steps), width - PAD.right, height - 6);
        pen.textAlign = "left";
        pen.fillText("0", PAD.left, height - 6);
        lines.forEach((points, i) => {
            pen.strokeStyle = pen.fillStyle = COLOURS[i];
            pen.lineWidth = 1.5;
            pen.beginPath();
            points.forEach(([step, loss], n) => (n ? pen.lineTo(x(step), y(loss)) : pen.moveTo(x(step), y(loss))));
            pen.stroke();
            for (const [step, loss] of dots[i]) { pen.beginPath(); pen.arc(x(step), y(loss), 3, 0, 7); pen.fill(); }
        });
    }
})(window.tuner);

// The run that is going, or has last gone: progress, curve, samples on a time line, files, and the buttons that steer it.
"use strict";

(function (tuner) {
    const { h } = tuner;
    const STATES = {
        waiting: "waiting", running: "running", pausing: "pausing: this step is finished and saved", stopping: "stopping: this step is finished and saved",
        interrupted: "interrupted: its program was ended", paused: "paused", done: "finished", stopped: "stopped", nan: "ended: the loss was no number", failed: "failed", unknown: "ended",
    };
    tuner.stateName = (state) => tuner.t(STATES[state] || state);

    // ---- one run's picture of itself, live or out of the history ----

    class RunView {
        // `again` shows the run anew where nothing else does: one out of the history is not asked for every second
        constructor(element, live, again = () => {}) {
            this.live = live;
            this.again = again;
            this.drawn = {};
            this.hover = null;
            this.build(element);
        }

        build(element) {
            this.head = h("h3", { class: "tuner-run-name" });
            this.state = h("span", { class: "tuner-state", role: "status" });
            this.bar = h("div", { class: "tuner-bar", role: "progressbar", "aria-valuemin": 0, "aria-label": tuner.t("Progress of the run") }, h("div"));
            this.numbers = h("p", { class: "tuner-numbers" });
            this.wait = h("p", { class: "tuner-wait" });
            this.error = h("div", { class: "tuner-failed", hidden: true });
            this.buttons = h("div", { class: "tuner-buttons" });
            this.canvas = h("canvas", { class: "tuner-chart", role: "img", tabindex: 0 });
            this.legend = h("p", { class: "tuner-legend" });
            this.samples = h("div", { class: "tuner-samples", tabindex: 0, role: "group", "aria-label": tuner.t("Samples by step, the training pictures first") });
            this.files = h("div", { class: "tuner-files" });
            this.warnings = h("details", { class: "tuner-notes", hidden: true });
            this.settings = h("details", { class: "tuner-notes", hidden: true, ontoggle: () => this.openSettings() });
            this.chartBox = h("div", { class: "tuner-chart-box" }, this.canvas, this.legend, this.smoothing());
            element.append(h("div", { class: "tuner-run-head" }, this.head, this.state), this.bar, this.numbers, this.wait, this.error, this.buttons,
                this.chartBox, this.samples, this.prompts(), this.files, this.warnings, this.settings);
            this.chart = new tuner.Chart(this.canvas, (point) => { this.hover = point; this.drawLegend(); });
        }

        smoothing() {
            const slider = h("input", { type: "range", min: 0, max: 0.99, step: 0.01, value: 0.9, "aria-label": tuner.t("Smoothing of the curve") });
            slider.addEventListener("input", () => { this.chart.weight = Number(slider.value); this.chart.draw(); });
            return h("label", { class: "tuner-smoothing" }, tuner.t("Smoothing"), slider);
        }

        prompts() {
            this.prompt = h("textarea", { rows: 3, "aria-label": tuner.t("Sample prompts, one a line"), oninput: () => { this.edited = true; } });
            const send = (path) => tuner.doing(async () => { await tuner.post(path, { prompts: this.prompt.value }); this.edited = false; });
            const change = send("do/prompts"), draw = send("do/sample");
            this.promptBox = h("div", { class: "tuner-prompts", hidden: true }, h("label", {}, tuner.t("Sample prompts, one a line")), this.prompt,
                h("div", { class: "tuner-buttons" }, h("button", { type: "button", class: "tuner-button", onclick: change }, tuner.t("Use from now on")),
                    h("button", { type: "button", class: "tuner-button", id: "tuner-sample-now", onclick: draw }, tuner.t("Sample now"))));
            return this.promptBox;
        }

        show(run, points) {
            if (this.run && this.run.id !== run.id) this.edited = false; // what was typed belonged to another run
            this.run = run;
            this.folder = this.live ? run.run : run.id;
            tuner.text(this.head, run.name);
            tuner.text(this.state, tuner.stateName(run.state));
            this.state.dataset.state = run.state;
            this.drawProgress(run);
            this.drawError(run);
            this.drawButtons(run);
            this.drawChart(run, points);
            this.drawSamples(run);
            tuner.show(this.promptBox, this.live && run.state === "running");
            if (!this.edited && document.activeElement !== this.prompt && this.prompt.value !== run.prompts) this.prompt.value = run.prompts || "";
            this.drawFiles(run);
            this.drawWarnings(run.warnings || []);
            this.drawSettings();
        }

        // Draws a part again only where what it is made of has changed.
        changed(part, value) {
            const text = JSON.stringify(value);
            if (this.drawn[part] === text) return false;
            this.drawn[part] = text;
            return true;
        }

        drawProgress(run) {
            const part = run.steps ? Math.min(1, run.step / run.steps) : 0;
            this.bar.firstChild.style.width = `${part * 100}%`;
            this.bar.setAttribute("aria-valuemax", run.steps || 1);
            this.bar.setAttribute("aria-valuenow", run.step);
            const going = ["running", "pausing", "stopping"].includes(run.state), said = [];
            if (run.steps) said.push(tuner.t("step {0} of {1}", run.step, run.steps));
            if (run.seconds_per_step && going) said.push(tuner.t("{0} s per step", tuner.number(run.seconds_per_step, 3)));
            if (run.left !== null && run.left !== undefined && going) said.push(tuner.t("{0} left", tuner.duration(run.left)));
            if (run.seconds) said.push(tuner.duration(run.seconds));
            if (run.memory && going) said.push(run.memory.gpu ? tuner.t("{0} video memory", tuner.bytes(run.memory.gpu)) : run.memory.process ? tuner.t("{0} memory", tuner.bytes(run.memory.process)) : "");
            if (run.device) said.push(tuner.said(run.device));
            tuner.text(this.numbers, said.filter(Boolean).join(" · "));
            const waiting = going && run.text ? `${tuner.said(run.text)}${run.total ? ` ${run.done}/${run.total}` : ""}…` : "";
            tuner.text(this.wait, waiting);
            tuner.show(this.wait, Boolean(waiting));
        }

        drawError(run) {
            if (!this.changed("error", [run.error, run.detail])) return;
            tuner.show(this.error, Boolean(run.error));
            this.error.replaceChildren(h("p", {}, tuner.saidOfSettings(run.error)));
            if (run.detail) this.error.append(h("details", {}, h("summary", {}, tuner.t("Details")), h("pre", {}, run.detail)));
        }

        drawButtons(run) {
            if (!this.changed("buttons", [run.id, this.folder, run.state, run.resumable])) return;
            const button = (id, label, action, strong) => h("button", { type: "button", id: this.live ? `tuner-${id}` : null, class: `tuner-button${strong ? " tuner-strong" : ""}`, onclick: tuner.doing(action) }, tuner.t(label));
            const made = [];
            if (this.live && run.state === "running") {
                made.push(button("pause", "Pause", () => tuner.post("do/pause")), button("stop", "Stop and save", () => tuner.post("do/stop")), button("save", "Save now", () => tuner.post("do/save")));
            } else if (this.live && ["paused", "stopped", "failed", "nan"].includes(run.state)) {
                made.push(button("resume", "Resume", () => tuner.post("do/resume", { id: run.id }), true));
            } else if (!this.live && run.resumable) {
                made.push(button("", "Resume", async () => { await tuner.post(`runs/${this.folder}/resume`); tuner.open("run"); }, true));
            }
            if (this.folder && !["running", "pausing", "stopping"].includes(run.state)) {
                made.push(button("load", "Put its settings into the form", async () => tuner.form.order({ run: this.folder })));
            }
            tuner.keepFocus(this.buttons, () => this.buttons.replaceChildren(...made));
        }

        drawChart(run, points) {
            tuner.show(this.chartBox, points.length > 0);
            const last = points.length ? points[points.length - 1][0] : 0;
            if (!this.changed("chart", [run.id, run.part, points.length, last, run.steps, (run.validations || []).length, (run.drifts || []).length])) return;
            this.drifts = run.drifts || [];
            Object.assign(this.chart, { points, validations: run.validations || [], steps: run.steps });
            this.chart.draw();
            this.drawLegend();
        }

        drawLegend() {
            const points = this.chart.points, point = this.hover || points[points.length - 1];
            if (!point) return;
            const validation = [...this.chart.validations].reverse().find((v) => v[0] <= point[0]);
            const text = tuner.t("step {0}: loss {1}, learning rate {2}", point[0], tuner.number(point[1]), point[2].toExponential(2))
                + (validation ? tuner.t(", validation loss {0} (step {1})", tuner.number(validation[1]), validation[0]) : "")
                + this.driftText(point[0]);
            tuner.text(this.legend, text);
            this.legend.setAttribute("aria-live", this.hover ? "polite" : "off");
            this.canvas.setAttribute("aria-label", tuner.t("Loss curve; {0}", text));
        }

        driftText(step) {
            const measured = this.drifts.filter((d) => d[0] <= step && d[1] !== null);
            if (!measured.length) return "";
            const [first, last] = [measured[0], measured[measured.length - 1]];
            return tuner.t(", language drift {0} (step {1}) to {2} (step {3})", tuner.number(first[1]), first[0], tuner.number(last[1]), last[0]);
        }

        drawSamples(run) {
            if (!this.changed("samples", [this.folder, run.samples, run.training])) return;
            const picture = (path, label) => h("img", { src: tuner.url(`runs/${this.folder}/${path}`), alt: label, title: label, loading: "lazy" });
            const column = (label, pictures) => h("figure", {}, h("figcaption", {}, label), ...pictures);
            const columns = (run.training || []).length && this.folder
                ? [column(tuner.t("training"), run.training.map((i) => picture(`training/${i}?size=256`, tuner.t("training picture {0}", i + 1))))] : [];
            for (const sample of run.samples || []) {
                columns.push(column(tuner.t("step {0}", sample.step), sample.pictures.map((path, i) => picture(`files/${path}?size=256`, tuner.t("step {0}, prompt {1}", sample.step, i + 1)))));
            }
            const atEnd = this.samples.scrollLeft + this.samples.clientWidth >= this.samples.scrollWidth - 8;
            this.samples.replaceChildren(...columns);
            tuner.show(this.samples, (run.samples || []).length > 0);
            if (atEnd) this.samples.scrollLeft = this.samples.scrollWidth;
        }

        drawFiles(run) {
            if (!this.changed("files", [this.folder, run.files])) return;
            tuner.keepFocus(this.files, () => this.files.replaceChildren(...tuner.filesOf(this.folder, run.files || [], this.again)));
        }

        drawWarnings(warnings) {
            if (!this.changed("warnings", warnings)) return;
            tuner.show(this.warnings, warnings.length > 0);
            this.warnings.replaceChildren(h("summary", {}, tuner.t("Notes on this run ({0})", warnings.length)), h("ul", {}, warnings.map((text) => h("li", {}, tuner.saidOfSettings(text)))));
        }
    }

    // The settings are asked for when somebody opens them: they lie in the run's folder.
    Object.assign(RunView.prototype, {
        drawSettings() {
            tuner.show(this.settings, Boolean(this.folder));
            if (!this.changed("settings", this.folder)) return;
            this.settings.open = false;
            this.settings.replaceChildren(h("summary", {}, tuner.t("Settings of this run")));
        },

        async openSettings() {
            if (!this.settings.open || this.settings.children.length > 1) return;
            const { settings } = await tuner.get(`runs/${this.folder}`);
            const rows = Object.entries(settings).filter(([, value]) => value !== "" && value !== false && value !== 0);
            this.settings.append(h("table", {}, h("tbody", {}, rows.map(([key, value]) => h("tr", {}, h("th", { scope: "row" }, tuner.settingNamed(key)), h("td", {}, String(value)))))));
        },
    });

    tuner.RunView = RunView;

    // ---- files ----

    tuner.filesOf = function (folder, files, again) {
        if (!files.length) return [];
        const several = files.filter((file) => file.use).length > 1;
        const compared = several ? [h("div", { class: "tuner-buttons" }, h("button", { type: "button", class: "tuner-button tuner-compare-run", onclick: tuner.doing(() => tuner.compare.openRun(folder)) }, tuner.t("Compare its saves")))] : [];
        return [h("h4", {}, tuner.t("Files")), ...compared, h("ul", { class: "tuner-file-list" }, files.map((file) => fileRow(folder, file, again)))];
    };

    function fileRow(folder, file, again) {
        const url = tuner.url(`runs/${folder}/files/${encodeURIComponent(file.name)}`);
        const copy = h("button", { type: "button", class: "tuner-button", onclick: tuner.doing(async () => { await tuner.copied(file.use); tuner.say(tuner.t("Copied: {0}", file.use)); }) }, tuner.t("Copy"));
        const rename = tuner.doing(async () => {
            const to = window.prompt(tuner.t("New name of {0}", file.name), file.name.replace(/\.[^.]+$/, ""));
            if (to) await tuner.post(`runs/${folder}/rename`, { name: file.name, to }).then(again);
        });
        const remove = tuner.doing(async () => {
            if (window.confirm(tuner.t("Delete {0}? It cannot be brought back.", file.name))) await tuner.post(`runs/${folder}/delete-file`, { name: file.name }).then(again);
        });
        return h("li", {}, h("span", {}, h("a", { href: url, download: file.name }, file.name), ` ${tuner.bytes(file.bytes)}`),
            file.use ? h("span", { class: "tuner-use" }, h("code", {}, file.use), copy, toTxt2img(file.use)) : h("span", { class: "tuner-use" }),
            h("span", { class: "tuner-small" }, tuner.said(file.report)),
            ranksOf(file.ranks),
            h("span", {}, h("button", { type: "button", class: "tuner-link", onclick: rename }, tuner.t("Rename")), h("button", { type: "button", class: "tuner-link", onclick: remove }, tuner.t("Delete"))));
    }

    // A bar for each block of the model, as high as the ranks of its layers together.
    function ranksOf(ranks) {
        const blocks = Object.entries(ranks || {});
        if (!blocks.length) return null;
        const most = Math.max(...blocks.map(([, sum]) => sum));
        const bar = ([block, sum]) => h("div", { title: `${block}: ${sum}` },
            h("span", {}, String(sum)), h("i", { style: `height: ${Math.max(1, Math.round(sum / most * 48))}px` }), h("b", {}, block));
        return h("figure", { class: "tuner-ranks" }, h("figcaption", { class: "tuner-small" }, tuner.t("Ranks of each block, all its layers together")),
            h("div", { class: "tuner-bars" }, blocks.map(bar)));
    }

    // In the WebUI: the prompt of the txt2img tab gets what uses the file, and the tab is opened.
    function toTxt2img(use) {
        if (typeof window.switch_to_txt2img !== "function") return null;
        const send = async () => {
            const prompt = window.gradioApp().querySelector("#txt2img_prompt textarea");
            prompt.value = prompt.value.includes(use) ? prompt.value : [prompt.value.trim(), use].filter(Boolean).join(", ");
            window.updateInput(prompt);
            window.switch_to_txt2img();
        };
        return h("button", { type: "button", class: "tuner-button tuner-send", onclick: tuner.doing(send) }, tuner.t("Send to txt2img"));
    }

    // The clipboard of the browser is there for https and this machine alone; elsewhere a selection is copied.
    tuner.copied = async function (text) {
        if (navigator.clipboard && window.isSecureContext) return navigator.clipboard.writeText(text);
        const field = h("textarea", {}, text), before = document.activeElement;
        document.body.append(field);
        field.select();
        const done = document.execCommand("copy");
        field.remove();
        if (before) before.focus();
        if (!done) throw new Error(tuner.t("The browser does not let this page copy; select the text and copy it yourself."));
    };

    // ---- the tab ----

    const part = { name: "run", label: "Run" };
    part.mount = function (element) {
        part.empty = h("div", { class: "tuner-empty" }, h("p", {}, tuner.t("Nothing has been trained yet.")),
            h("p", {}, tuner.root.dataset.filled === "1" ? tuner.t("The form is filled in for a first try: press Train, and a small model learns to draw a robot in a few minutes.")
                : tuner.t("Name the folder with your pictures, choose a preset, and press Train.")));
        part.box = h("div", { hidden: true });
        element.append(part.empty, part.box);
        part.view = new RunView(part.box, true);
    };
    part.kept = () => part.view.edited && part.view.prompt.value;
    part.restore = function (prompts) {
        part.view.prompt.value = prompts;
        part.view.edited = true;
    };
    part.show = function (status) {
        tuner.show(part.empty, !status.now);
        tuner.show(part.box, Boolean(status.now));
        if (status.now) part.view.show(status.now, tuner.points);
    };
    tuner.parts.push(part);
    tuner.parts.sort((a, b) => ["run", "queue", "history"].indexOf(a.name) - ["run", "queue", "history"].indexOf(b.name));
})(window.tuner);

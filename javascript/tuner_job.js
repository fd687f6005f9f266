// The tool that is at work, or was last: how far it is, what came of it, and what `inspect` has found in a file.
"use strict";

(function (tuner) {
    const { h } = tuner;
    const BUSY = 400, IDLE = 3000, LOST = 5000; // ms between two questions while the tools are looked at; lost: a request while the WebUI starts can kill it
    let timer = null, lost = false, drawn = "", reports = {}; // reports: of the last job, which the server tells once
    const tools = tuner.tools = tuner.tools || {}; // the fields and files are tuner_tools.js's

    // ---- the loop ----

    // Asks once, and from then on as long as the tools are shown.
    tools.look = async function () {
        clearTimeout(timer);
        if (!tuner.root.isConnected) return; // Reload UI has taken the page away, and it is drawn anew later
        const before = tools.job, known = before && before.id in reports ? `?known=${before.id}` : "";
        const answer = await tuner.get(`tools/job${known}`).catch((error) => error), again = lost;
        lost = answer instanceof Error;
        if (lost) tools.say(tuner.unanswered(answer), true);
        else await take(answer.job, before, again);
        clearTimeout(timer);
        if (tools.open) timer = setTimeout(tools.look, document.hidden ? IDLE * 5 : lost ? LOST : going(tools.job) ? BUSY : IDLE);
    };

    async function take(job, before, again) {
        if (again) tools.say("");
        if (job && job.report) reports = { [job.id]: job.report };
        tools.job = job;
        if (before !== undefined && job && !going(job) && (!before || before.id !== job.id || going(before))) await ended(); // it may have gone in no time
        tools.drawJob();
    }

    // What was made can be chosen now, and its name is taken.
    async function ended() {
        await tools.refreshFiles().catch(() => {}); // the next question says it, where the program is gone
        if (tools.jobBox) tools.check();
    }

    const going = (job) => Boolean(job) && ["running", "stopping"].includes(job.state);

    // ---- drawing ----

    tools.drawJob = function (anew) {
        const job = tools.job, box = tools.jobBox;
        if (!box || !box.isConnected) return;
        tools.button.disabled = going(job);
        tuner.show(box, Boolean(job));
        if (!job) return;
        const text = JSON.stringify([job.id, job.state, job.error, job.files]);
        if (anew || text !== drawn) {
            drawn = text;
            tuner.keepFocus(box, () => box.replaceChildren(...parts(job)));
            if (job.state === "failed" && job.tool === tools.name) tools.say(tuner.said(job.error), true);
        }
        progress(box, job);
    };

    function parts(job) {
        const form = tools.forms.find((one) => one.name === job.tool);
        const head = h("div", { class: "tuner-run-head" }, h("h4", {}, form ? tuner.t(form.label) : job.tool), h("span", { class: "tuner-state", role: "status", "data-state": job.state }, state(job.state)));
        if (going(job)) {
            const stop = tools.doing(async () => { await tuner.send("tools/job/stop"); await tools.look(); });
            return [head, h("div", { class: "tuner-bar", role: "progressbar", "aria-valuemin": 0, "aria-label": tuner.t("Progress of the tool") }, h("div")), h("p", { class: "tuner-numbers" }),
                h("div", { class: "tuner-buttons" }, h("button", { type: "button", class: "tuner-button", id: "tuner-tool-stop", onclick: stop }, tuner.t("Stop")))];
        }
        if (job.tool !== tools.name) return [head, h("div", { class: "tuner-buttons" }, h("button", { type: "button", class: "tuner-button", onclick: () => tools.choose(job.tool, job) }, tuner.t("Show")))];
        const details = job.detail ? h("details", {}, h("summary", {}, tuner.t("Details")), h("pre", {}, job.detail)) : null;
        return [head, details, job.files.length ? h("ul", { class: "tuner-file-list" }, job.files.map((file, i) => fileOf(job, file, i))) : null,
            ...job.said.map((text) => h("p", {}, tuner.said(text))), job.id in reports && job.state === "done" ? reportOf(reports[job.id], job.values.json === true) : null].filter(Boolean);
    }

    const state = (name) => ({ running: tuner.t("at work"), stopping: tuner.t("stopping"), done: tuner.t("finished"), failed: tuner.t("failed"), stopped: tuner.t("stopped: nothing was written") }[name] || name);

    function progress(box, job) {
        const bar = box.querySelector(".tuner-bar"), numbers = box.querySelector(".tuner-numbers");
        if (!bar) return;
        bar.firstChild.style.width = `${job.total ? job.done / job.total * 100 : 0}%`;
        bar.setAttribute("aria-valuemax", job.total || 1);
        bar.setAttribute("aria-valuenow", job.done);
        const said = [job.total ? `${tools.word(job.step)} ${job.done}/${job.total}` : tuner.t("Reading the files…"), job.left === null ? "" : tuner.t("{0} left", tuner.duration(job.left))];
        tuner.text(numbers, said.filter(Boolean).join(" · "));
    }

    function fileOf(job, file, index) {
        const use = job.kind === "lora" && job.files.length === 1 && file.name.endsWith(".safetensors") ? `<lora:${file.name.replace(/\.safetensors$/, "")}:1>` : "";
        const copy = (text) => h("button", { type: "button", class: "tuner-button", onclick: tools.doing(async () => { await tuner.copied(text); tools.say(tuner.t("Copied: {0}", text)); }) }, tuner.t("Copy"));
        return h("li", {}, h("span", {}, h("a", { href: tuner.url(`tools/job/files/${index}`), download: file.name }, file.name), ` ${tuner.bytes(file.bytes)}`),
            h("span", { class: "tuner-use" }, h("code", {}, file.path), copy(file.path)), use ? h("span", { class: "tuner-use" }, h("code", {}, use), copy(use)) : null);
    }

    // ---- what a file is ----

    const APART = ["file", "kind", "is", "blocks", "norms", "training", "tags", "settings", "summary", "note"], TAGS = 24;

    function reportOf(report, json) {
        const facts = Object.entries(report).filter(([key, value]) => !APART.includes(key) && !empty(value));
        const rest = Object.keys(report.tags || {}).length - TAGS, tags = Object.entries(report.tags || {});
        const tag = ([name, n]) => h("span", { class: "tuner-tag" }, name, h("small", {}, String(n)));
        return h("div", { class: "tuner-report" }, h("h4", {}, report.file), h("p", { class: "tuner-is" }, tuner.said(report.is)),
            report.summary ? h("p", { class: "tuner-small" }, tuner.said(report.summary)) : null, report.note ? h("p", { class: "tuner-failed" }, tuner.said(report.note)) : null,
            table(facts), section(tuner.t("Training"), table(Object.entries(report.training || {}))),
            tags.length ? section(tuner.t("Tags, and how often each occurs"), h("p", { class: "tuner-tags" }, tags.slice(0, TAGS).map(tag)),
                rest > 0 ? h("details", {}, h("summary", {}, tuner.t("and {0} more", rest)), h("p", { class: "tuner-tags" }, tags.slice(TAGS).map(tag))) : null) : null,
            Object.keys(report.blocks).length ? blocksOf(report) : null,
            empty(report.settings) ? null : h("details", {}, h("summary", {}, tuner.t("Settings it was trained with")), table(Object.entries(report.settings).filter(([, value]) => !empty(value)), (key) => key)),
            h("details", { open: json }, h("summary", {}, tuner.t("All of it as JSON")), h("pre", {}, JSON.stringify(report, null, 2))));
    }

    const empty = (value) => value === null || value === undefined || value === "" || value === false || (typeof value === "object" && Object.keys(value).length === 0);
    const section = (title, ...content) => (content[0] ? [h("h4", {}, title), ...content] : null);

    function table(rows, name = (key) => (key === "bytes" ? tuner.t("Size") : tools.word(key))) {
        return rows.length ? h("table", {}, h("tbody", {}, rows.map(([key, value]) => h("tr", {}, h("th", { scope: "row" }, name(key)), h("td", {}, valueOf(key, value)))))) : null;
    }

    function valueOf(key, value) {
        const part = (name) => ({ unet: tuner.t("UNet"), text: tuner.t("Text encoder") }[name] || name);
        if (key === "bytes") return tuner.bytes(value);
        if (key === "trained by") return tuner.said(value);
        if (Array.isArray(value)) return value.join(", ");
        if (typeof value === "object") return Object.entries(value).map(([name, n]) => `${part(name)} (${n})`).join(", ");
        return typeof value === "number" && key !== "step" ? value.toLocaleString(tuner.language.locale) : String(value);
    }

    // A bar for each block of the UNet, and one for the text encoder, as long as its norm.
    function blocksOf(report) {
        const blocks = Object.entries(report.blocks), most = Math.max(...blocks.map(([, norm]) => norm || 0)) || 1;
        return h("figure", { class: "tuner-norms" }, h("figcaption", {}, tuner.said(report.norms)), h("div", { role: "list" }, blocks.map(([name, norm]) => (
            h("div", { role: "listitem", "data-part": name.replace(/\d+/, "") }, h("span", {}, name), h("i", {}, h("b", { style: `width: ${(norm || 0) / most * 100}%` })), h("span", {}, norm === null ? "NaN" : tuner.number(norm, 3)))))));
    }
})(window.tuner);

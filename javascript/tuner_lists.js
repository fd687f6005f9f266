// The queue, whose runs are ordered, removed and resumed; and the history, all runs in a table, each of which opens as it was.
"use strict";

(function (tuner) {
    const { h } = tuner;

    // ---- queue ----

    const queue = { name: "queue", label: "Queue" };
    queue.mount = function (element) {
        queue.holding = h("button", { type: "button", class: "tuner-button", hidden: true, onclick: tuner.doing(() => tuner.post("do/hold")) }, tuner.t("Start no other run for now"));
        queue.list = h("ol", { class: "tuner-queue" });
        queue.empty = h("p", {}, tuner.t("The queue is empty. Every run that is started while another one goes waits here."));
        element.append(queue.empty, queue.list, h("div", { class: "tuner-buttons" }, queue.holding));
    };
    queue.show = function (status) {
        const waiting = status.queue.filter((entry) => entry.state === "waiting").length;
        tuner.text(document.getElementById("tuner-tab-queue"), waiting ? tuner.t("Queue ({0})", waiting) : tuner.t("Queue"));
        const text = JSON.stringify([status.queue, status.held]);
        if (text === queue.drawn) return;
        queue.drawn = text;
        tuner.show(queue.empty, status.queue.length === 0);
        tuner.show(queue.holding, !status.held && waiting > 0);
        tuner.keepFocus(queue.list, () => queue.list.replaceChildren(...status.queue.map((entry) => row(entry))));
    };

    function row(entry) {
        const button = (label, text, action) => h("button", { type: "button", class: "tuner-button", "aria-label": `${text}: ${entry.name}`, title: text, onclick: tuner.doing(action) }, label);
        const going = ["running", "pausing", "stopping"].includes(entry.state), buttons = [];
        if (entry.state === "waiting") {
            buttons.push(button("↑", tuner.t("Earlier"), () => tuner.post("do/move", { id: entry.id, by: -1 })), button("↓", tuner.t("Later"), () => tuner.post("do/move", { id: entry.id, by: 1 })));
        }
        if (["paused", "stopped", "failed", "nan"].includes(entry.state)) buttons.push(button(tuner.t("Resume"), tuner.t("Resume"), () => tuner.post("do/resume", { id: entry.id })));
        if (!going) buttons.push(button("✕", tuner.t("Remove"), () => tuner.post("do/remove", { id: entry.id })));
        const steps = entry.step ? tuner.t("step {0} of {1}", entry.step, entry.steps) : tuner.t("{0} steps", entry.steps);
        return h("li", { "data-state": entry.state }, h("span", { class: "tuner-entry" }, h("strong", {}, entry.name), ` ${entry.method}, ${steps}`),
            h("span", { class: "tuner-state", "data-state": entry.state }, tuner.stateName(entry.state)), h("span", { class: "tuner-buttons" }, buttons),
            entry.error ? h("p", { class: "tuner-bad-text" }, tuner.saidOfSettings(entry.error)) : null);
    }

    // ---- history ----

    const COLUMNS = [
        ["name", "Name", (run) => run.name], ["method", "Method", (run) => run.method], ["data", "Data", (run) => run.data], ["state", "State", (run) => tuner.stateName(run.state)],
        ["step", "Steps", (run) => `${run.step}/${run.steps}`], ["loss", "Loss", (run) => tuner.number(run.loss, 3)],
        ["validation", "Validation loss", (run) => tuner.number(run.validation, 4)], ["best", "Best", (run) => tuner.number(run.best, 4)],
        ["seconds", "Time", (run) => tuner.duration(run.seconds)], ["started", "Date", (run) => new Date(run.started * 1000).toLocaleString(tuner.language.locale, { dateStyle: "short", timeStyle: "short" })],
    ];
    const history = { name: "history", label: "History", sort: "started", down: true, runs: [] };

    history.mount = function (element) {
        history.table = h("div", { class: "tuner-table", tabindex: 0, role: "region", "aria-label": tuner.t("All runs") });
        history.detail = h("div", { class: "tuner-detail", hidden: true });
        element.append(history.table, history.detail);
    };
    history.kept = () => history.chosen;
    history.restore = tuner.doing((id) => open(id));
    history.show = function (status) {
        const ended = status.queue.map((entry) => `${entry.run}${entry.state}`).join();
        if (ended !== history.ended && !history.table.closest("section").hidden) history.opened();
        history.ended = ended;
    };
    history.opened = tuner.doing(async () => {
        history.runs = await tuner.get("runs");
        const writing = history.table.contains(document.activeElement) && document.activeElement.tagName === "INPUT";
        if (!writing) tuner.keepFocus(history.table, drawTable); // a note that is being written is not drawn over
        if (history.chosen && !history.runs.some((run) => run.id === history.chosen)) close();
    });

    function drawTable() {
        const runs = [...history.runs].sort((a, b) => (compare(a[history.sort], b[history.sort]) * (history.down ? -1 : 1)));
        if (!runs.length) return history.table.replaceChildren(h("p", {}, tuner.t("No run has been made yet.")));
        const heading = ([key, label]) => h("th", { scope: "col", "aria-sort": key === history.sort ? (history.down ? "descending" : "ascending") : null },
            h("button", { type: "button", class: "tuner-link", onclick: () => { history.down = key === history.sort ? !history.down : true; history.sort = key; drawTable(); } }, tuner.t(label)));
        history.table.replaceChildren(h("table", {}, h("thead", {}, h("tr", {}, COLUMNS.map(heading), h("th", { scope: "col" }, tuner.t("Notes")))), h("tbody", {}, runs.map(tableRow))));
    }

    function compare(a, b) {
        if (a === null || a === undefined) return -1;
        if (b === null || b === undefined) return 1;
        return typeof a === "string" ? a.localeCompare(b) : a - b;
    }

    function tableRow(run) {
        const cells = COLUMNS.map(([key, , text]) => (key === "name"
            ? h("th", { scope: "row" }, h("button", { type: "button", class: "tuner-link", onclick: tuner.doing(() => open(run.id)) }, text(run))) : h("td", {}, text(run))));
        const note = h("input", { type: "text", value: run.notes, "aria-label": tuner.t("Notes on {0}", run.name), onchange: tuner.doing((event) => save(event, run)) });
        return h("tr", { "data-run": run.id }, cells, h("td", {}, note));
    }

    async function save(event, run) {
        run.notes = event.target.value;
        await tuner.post(`runs/${run.id}/note`, { text: run.notes });
    }

    let asked = 0;

    async function open(id) {
        const mine = ++asked, run = await tuner.get(`runs/${id}`);
        if (mine !== asked) return; // another one was chosen meanwhile
        history.chosen = id;
        const box = h("div");
        const remove = tuner.doing(async () => {
            if (!window.confirm(tuner.t("Delete the run {0} with all its files? It cannot be brought back.", run.name))) return;
            await tuner.post(`runs/${id}/delete`);
            close();
            history.opened();
        });
        history.detail.replaceChildren(h("div", { class: "tuner-buttons" }, h("button", { type: "button", class: "tuner-button", onclick: close }, tuner.t("Close")),
            h("button", { type: "button", class: "tuner-button", onclick: remove }, tuner.t("Delete this run"))), box);
        history.detail.hidden = false;
        new tuner.RunView(box, false, () => open(id)).show(run, run.points);
        history.detail.scrollIntoView({ block: "nearest" });
    }

    function close() {
        asked++;
        history.chosen = null;
        history.detail.hidden = true;
        history.detail.replaceChildren();
    }

    tuner.parts.push(queue, history);
})(window.tuner);

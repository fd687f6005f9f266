// Long work in an open folder (tagging, checks, crops): how far it is, the time left, and a button that stops it. Also many files that are being written.
"use strict";

(function (tuner) {
    const { h } = tuner;
    const BUSY = 500, HIDDEN = 5000, LOST = 5000, LONG = 700; // ms between two looks; ms after which writing is long work
    const data = tuner.data = tuner.data || {};
    (data.parts = data.parts || []).push({ mount, drawn: () => {} });
    const waiting = new Map(); // by the work's name: what is done with its end
    let box = null, timer = null, folder = "";
    data.work = null;

    function mount(main) {
        box = h("div", { id: "tuner-d-work", class: "tuner-d-work", hidden: true });
        main.prepend(box);
        look(); // what was begun before the page was drawn
    }

    // Begins work by an order, and resolves with its result when it has ended well; rejects with the sentence of a failure, or with "" where it was stopped.
    data.begin = async function (path, body) {
        data.work = await data.send(path, body);
        draw();
        const ended = new Promise((resolve, reject) => waiting.set(data.work.name, { resolve, reject }));
        next();
        return ended;
    };

    // An order that writes files: it is answered when all are written, and where that takes long a bar says how far it is.
    data.write = async function (path, body) {
        const long = setTimeout(() => next(0), LONG), { id } = data.folder;
        try {
            const answer = await data.send(path, body);
            if (data.folder.id !== id) throw new Error(""); // it is of a folder that is not shown any more
            return answer;
        } finally {
            clearTimeout(long);
            if (data.work && data.work.name === "write") next(0);
        }
    };

    function next(wait = BUSY) {
        clearTimeout(timer);
        timer = setTimeout(look, document.hidden ? HIDDEN : wait);
    }

    async function look() {
        if (!data.folder || !box.isConnected) return;
        folder = data.folder.id;
        let wait = BUSY;
        try {
            const found = (await data.get("job")).job;
            if (!data.folder || data.folder.id !== folder) return;
            data.work = found;
            draw();
            if (!going()) { ended(); return; }
        } catch (error) {
            data.say(error.message, true);
            wait = LOST;
        }
        next(wait);
    }

    const going = () => data.work && ["running", "stopping"].includes(data.work.state);

    function ended() {
        const then = data.work && waiting.get(data.work.name);
        if (!then) return;
        waiting.delete(data.work.name);
        if (data.work.state === "done") then.resolve(data.work.result);
        else then.reject(new Error(data.work.state === "failed" ? tuner.said(data.work.error) : ""));
    }

    const STAGES = () => ({ tag: tuner.t("Tagging"), turn: tuner.t("Waiting for the WebUI and its model"), caption: tuner.t("Describing"), look: tuner.t("Looking at pictures"), captions: tuner.t("Checking captions"),
        apply: tuner.t("Writing captions"), undo: tuner.t("Taking back"), redo: tuner.t("Doing again"), delete: tuner.t("Moving files") });

    function counted(stage, done, total) {
        if (stage === "fetch") return tuner.t("Downloading the model: {0} of {1}", tuner.bytes(done), tuner.bytes(total));
        return [STAGES()[stage], total ? `${done}/${total}` : ""].filter(Boolean).join(" ");
    }

    function draw() {
        tuner.show(box, Boolean(going()));
        if (!going()) return;
        if (!box.firstChild) {
            box.replaceChildren(h("div", { class: "tuner-bar", role: "progressbar", "aria-valuemin": 0, "aria-label": tuner.t("Progress") }, h("div")), h("span", { class: "tuner-small" }),
                h("button", { type: "button", class: "tuner-button", id: "tuner-d-stop", onclick: data.doing(async () => { data.work = (await data.send("job/stop")).job; draw(); }) }, tuner.t("Stop")));
        }
        const { done, total, left, state, stage, stoppable } = data.work, bar = box.querySelector(".tuner-bar");
        tuner.show(box.querySelector("button"), stoppable !== false);
        bar.firstChild.style.width = `${total ? done / total * 100 : 0}%`;
        bar.setAttribute("aria-valuemax", total || 1);
        bar.setAttribute("aria-valuenow", done);
        tuner.text(box.querySelector("span"), state === "stopping" ? tuner.t("stopping") : [counted(stage, done, total), left === null ? "" : tuner.t("{0} left", tuner.duration(left))].filter(Boolean).join(" · "));
    }
})(window.tuner);

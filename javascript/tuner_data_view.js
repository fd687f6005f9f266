// One picture in large, its caption as tags and as text. What is typed is saved by itself: when one stops, goes on to another picture, or leaves.
"use strict";

(function (tuner) {
    const { h } = tuner;
    const PAUSE = 1500, LIMIT = 75; // ms without a key; CLIP's tokens of one piece of a prompt
    const data = tuner.data = tuner.data || {};
    (data.parts = data.parts || []).push({ mount, drawn: () => {} });
    const view = data.view = { row: null };
    let panel = null, timer = null, typed = null, chain = Promise.resolve(), base = ""; // typed: {folder, path, row, place, text, was} that is not saved yet; base: what the file says
    let shown = null, adding = chain, composing = false; // shown: what the panel shows; adding: tags go in one after the other; composing: an input method is at work in their field, or "late" where something is to be drawn after it

    function mount(main) {
        panel = h("section", { id: "tuner-d-view", class: "tuner-d-view", hidden: true, "aria-label": tuner.t("Picture and caption"), onkeydown: keys });
        main.append(panel);
        view.row = shown = null;
        composing = false;
        clearTimeout(timer);
        typed = null; // whoever draws the page anew keeps it: `view.typed`, `view.again`
    }

    view.open = async function (row, add = false) {
        await saved();
        view.row = row;
        if (data.rows.includes(row)) data.go(row);
        else data.current = row;
        document.getElementById("tuner-d-grid").hidden = true;
        panel.hidden = false;
        await draw();
        const field = panel.querySelector(add ? "#tuner-d-add" : "#tuner-d-next");
        if (field) field.focus(); // the picture may be gone
    };

    view.close = async function () {
        await saved();
        const row = view.row;
        view.row = null;
        panel.hidden = true;
        document.getElementById("tuner-d-grid").hidden = false;
        if (row !== null && data.rows.includes(row)) data.go(row);
        else data.place();
        data.focusGrid();
    };

    // After an edit from elsewhere; what is being typed stays.
    view.refresh = () => (view.row === null || typed ? null : draw().catch((error) => data.say(error.message, true)));

    // Nothing where another folder was opened meanwhile, whose rows are other pictures.
    async function known(row) {
        const id = folder();
        while (folder() === id && !data.details.has(row) && !await data.learn([row]));
        return folder() === id ? data.details.get(row) : undefined;
    }

    const folder = () => (data.folder ? data.folder.id : "");

    async function draw() {
        const row = view.row, id = folder(), item = await known(row);
        if (composing) composing = "late";
        if (view.row !== row || folder() !== id || typed || composing) return; // somebody has gone on, or types already
        if (!item) { await view.close(); return; }
        const at = data.rows.indexOf(row), button = (id, text, action, more = {}) => h("button", { type: "button", id, class: "tuner-button", onclick: data.doing(action), ...more }, text);
        const name = document.activeElement && panel.contains(document.activeElement) ? document.activeElement.id : "", begun = shown && shown.row === row ? adder() : null;
        shown = item;
        panel.replaceChildren(
            h("div", { class: "tuner-d-bar" }, h("strong", {}, item.place), h("small", { class: "tuner-small" }, at < 0 ? tuner.t("does not fit the filter any more") : tuner.t("picture {0} of {1}", at + 1, data.rows.length)), h("span", { class: "tuner-d-space" }),
                button("tuner-d-prev", "←", () => to(-1), { "aria-label": tuner.t("Previous picture") }), button("tuner-d-next", "→", () => to(1), { "aria-label": tuner.t("Next picture") }), button("tuner-d-back", tuner.t("Back to the grid"), view.close)),
            h("div", { class: "tuner-d-two" }, h("div", { class: "tuner-d-large", id: "tuner-d-large" }, image(row, item.name)), caption(item)));
        for (const part of data.parts) if (part.viewed) part.viewed(panel, item);
        const again = name && document.getElementById(name);
        if (again) again.focus();
        if (!begun || !begun.value) return;
        adder().value = begun.value; // a tag that is being typed
        adder().setSelectionRange(begun.selectionStart, begun.selectionEnd);
    }

    const adder = () => panel.querySelector("#tuner-d-add");

    function image(row, name) {
        const picture = h("img", { src: data.pictureUrl(row, 1024), alt: name, onerror: () => picture.replaceWith(h("p", { class: "tuner-d-broken" }, tuner.t("This picture cannot be shown."))) });
        return picture;
    }

    function caption(item) {
        const box = h("textarea", { id: "tuner-d-text", rows: 5, spellcheck: "false", "aria-label": tuner.t("Caption"), oninput: () => note(item, box.value), onblur: data.doing(view.flush) });
        box.value = base = item.text;
        box.readOnly = !data.folder.editable;
        const add = h("input", { type: "text", id: "tuner-d-add", placeholder: tuner.t("Add a tag"), "aria-label": tuner.t("Add a tag"), spellcheck: "false", onkeydown: (event) => {
            if (event.key !== "Enter" || tuner.composing(event)) return;
            event.preventDefault();
            data.doing(() => addTag(item.row, add))({});
        }, oncompositionstart: () => { composing = true; }, oncompositionend: () => { if (composing === "late") setTimeout(view.refresh); composing = false; } });
        const chips = item.is_text ? h("p", { class: "tuner-small" }, tuner.t("This caption is sentences; tags are added behind them.")) : h("ul", { class: "tuner-d-chips", "aria-label": tuner.t("Tags") }, item.tags.map((tag) => chip(item.row, tag)));
        return h("div", { class: "tuner-d-caption" }, chips, h("div", { class: "tuner-d-adding" }, data.suggesting(add)),
            h("label", { for: "tuner-d-text" }, tuner.t("Caption as text")), box, h("p", { id: "tuner-d-state", class: "tuner-small", role: "status" }, counted(item), " · ", data.folder.editable ? tuner.t("saved") : tuner.t("cannot be written here")));
    }

    const counted = (item) => h("span", { class: item.tokens > LIMIT ? "tuner-bad-text" : "" }, tuner.t("{0} of 75 tokens", item.tokens));

    function chip(row, tag) {
        const drop = data.doing(async () => { await view.flush(); await data.edit("remove", { tags: [tag] }, [row]); });
        return h("li", { class: "tuner-d-chip" }, h("span", {}, tag), h("button", { type: "button", "aria-label": tuner.t("Remove {0}", tag), onclick: drop }, "×"));
    }

    // The field is free for the next tag at once; one that cannot be added comes back into it.
    async function addTag(row, input) {
        const text = input.value.trim();
        if (!text) return;
        input.value = "";
        const { id } = data.folder, { place } = shown, wrong = () => new Error(tuner.t("Words that could not be saved, for {0}: {1}", place, text));
        adding = adding.catch(() => {}).then(async () => {
            if (data.folder.id !== id) throw wrong();
            await view.flush();
            if (data.folder.id !== id) throw wrong();
            await data.edit("add", { tags: text, where: "last" }, [row]);
        });
        try {
            await adding;
        } catch (error) {
            if (error.message && data.folder.id === id && view.row === row && adder()) adder().value = [text, adder().value].filter(Boolean).join(", ");
            throw error;
        }
    }

    // Waits until the tags that were typed are in, or refused, which has been said.
    view.added = () => adding.catch(() => {});

    // ---- what is typed ----

    function note({ row, place }, text) {
        typed = { folder: data.folder.id, path: data.folder.folder, row, place, text, was: base };
        state(tuner.t("not saved yet"));
        clearTimeout(timer);
        timer = setTimeout(data.doing(view.flush), PAUSE);
    }

    function state(text, ...more) {
        const element = document.getElementById("tuner-d-state");
        if (!element) return;
        while (element.childNodes.length > 3) element.lastChild.remove();
        element.childNodes[2].textContent = text;
        element.append(...more);
    }

    // Words that are not saved, for whoever draws the page anew; and puts them back into their field, to be seen beside what the file says now.
    view.typed = () => typed;
    view.again = async function (words) {
        if (words.path !== data.folder.folder) throw new Error(tuner.t("Words that could not be saved, for {0}: {1}", words.place, words.text));
        await view.open(words.row);
        const box = document.getElementById("tuner-d-text");
        if (!box || !shown || shown.place !== words.place) throw new Error(tuner.t("Words that could not be saved, for {0}: {1}", words.place, words.text));
        if (box.value === words.text) return;
        data.say(tuner.t("The file says: {0} - your words are in the field again; they take its place when you go on.", base || tuner.t("nothing")));
        box.value = words.text;
        note(shown, words.text);
        clearTimeout(timer);
        box.focus();
    };

    // Saves what was typed, one after the other. Raises with the sentence of a refusal; then the words stay in their field until they are saved or given up.
    view.flush = () => (chain = chain.catch(() => {}).then(save));

    // The same, with what is typed while it is saved: for whoever goes on to another picture.
    async function saved() {
        do await view.flush(); while (typed);
    }

    async function save() {
        clearTimeout(timer);
        const now = typed;
        if (!now) return;
        state(tuner.t("saving…"));
        try {
            const answer = await tuner.send(`data/${now.folder}/edit`, { name: "write", args: { text: now.text }, rows: [now.row], was: now.was });
            base = now.text;
            if (typed === now) typed = null;
            else if (typed) typed.was = now.text;
            if (data.folder.id !== now.folder) return;
            const mine = document.activeElement && document.activeElement.id === "tuner-d-text";
            if (typed || mine) await kept(answer, now.row);
            else await data.changed(answer);
        } catch (error) {
            // the field keeps the focus when the button is pressed: to leave it would save once more
            state(tuner.t("not saved"), " ", h("button", { type: "button", id: "tuner-d-give-up", class: "tuner-button", onmousedown: (event) => event.preventDefault(), onclick: data.doing(giveUp) }, tuner.t("Give my words up")));
            throw error;
        }
    }

    async function giveUp() {
        clearTimeout(timer);
        typed = null;
        data.details.delete(view.row);
        await draw();
    }

    // The same without drawing the field in which somebody types.
    async function kept(answer, row) {
        Object.assign(data.folder, { version: answer.version, undo: answer.undo, redo: answer.redo });
        data.details.clear();
        await data.look();
        const item = await known(row), element = document.getElementById("tuner-d-state");
        if (element && item && view.row === row) element.firstChild.replaceWith(counted(item));
        if (!typed) {
            if (item && view.row === row) base = item.text;
            state(tuner.t("saved"));
        }
    }

    window.addEventListener("beforeunload", (event) => { if (typed) { data.doing(view.flush)({}); event.preventDefault(); } });

    // ---- keys ----

    async function to(by) {
        await saved();
        const before = view.row, next = data.step(by);
        if (next !== null && next !== before) {
            view.row = next;
            await draw();
        }
    }

    view.to = to;

    function keys(event) {
        if (tuner.composing(event)) return;
        const typing = ["TEXTAREA", "INPUT"].includes(event.target.tagName), controlled = event.ctrlKey || event.metaKey;
        const run = (action) => { event.preventDefault(); event.stopPropagation(); data.doing(async () => action())({ currentTarget: null }); };
        if (event.key === "Escape") run(view.close);
        else if (event.altKey && event.key === "ArrowRight" || controlled && event.key === "Enter") run(() => to(1)); // also while one types
        else if (event.altKey && event.key === "ArrowLeft") run(() => to(-1));
        else if (typing || event.altKey) return;
        else if (controlled && event.key === "z" || !controlled && event.key === "u") run(data.undo);
        else if (controlled && event.key === "y") run(data.redo);
        else if (controlled) return;
        else if (["ArrowRight", "j"].includes(event.key) && !event.defaultPrevented) run(() => to(1));
        else if (["ArrowLeft", "k"].includes(event.key) && !event.defaultPrevented) run(() => to(-1));
        else if (event.key === "t") run(() => panel.querySelector("#tuner-d-add").focus());
    }
})(window.tuner);

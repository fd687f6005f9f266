// Sentences of the server in the page's language. `window.localization` is a table {English text: translation}, as the WebUI makes it; a key with
// {0}, {1}, ... is a pattern as well: what fits it is said as the table says it, with its values put in.
"use strict";

(function (tuner) {
    const STRONG = 10; // letters; a shorter pattern is no sign that a value within a sentence is one of ours
    const KEY = /^[a-z_]+(\.[a-z_]+)*: /; // a setting's key before a sentence, which no key of the table has
    const END = /(?<=[.!?…]) (?=[A-Z"“'])/, SEVERAL = /; |[.!?…] [A-Z"“']/;
    const known = new Map();
    let patterns = [], made = null;

    // What the server says, in the page's language; what is not in the table stays as it is.
    tuner.said = function (text) {
        if (!text || !prepared()) return text || "";
        if (!known.has(text)) {
            if (known.size > 500) known.clear();
            known.set(text, text.split("\n").map((line) => sentence(line, 0)).join("\n"));
        }
        return known.get(text);
    };

    // The patterns of the table that is there now; false where there is none.
    function prepared() {
        const table = window.localization || {};
        if (made !== table) {
            made = table;
            known.clear();
            patterns = Object.keys(table).filter((key) => /\{\d\}/.test(key)).map(pattern).sort((a, b) => b.weight - a.weight);
        }
        return patterns.length > 0;
    }

    function pattern(key) {
        const parts = key.split(/\{(\d)\}/), literal = parts.filter((part, i) => i % 2 === 0);
        const body = literal.map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("([^]+?)");
        return { key, open: !literal[0], order: parts.filter((part, i) => i % 2), weight: literal.join("").replace(/[^a-z]/gi, "").length, test: new RegExp(`^${body}$`) };
    }

    // One sentence, or several, or parts that are joined; a value within goes through here too, with `least` letters that a pattern must have.
    // A value that looks like several sentences is believed last, and so is one in front that ends another's head: `a.safetensors: 277` of 277.
    function sentence(text, least) {
        const said = (piece) => sentence(piece, least);
        return (KEY.test(text) ? after(text, least) : null) ?? whole(text, least, true) ?? run(text, least) ?? joined(text, "; ", said, true)
            ?? after(text, least, (rest) => whole(rest, least, true)) ?? whole(text, least) ?? joined(text, "; ", said) ?? after(text, least) ?? predicate(text, least)
            ?? joined(text, ", ", (piece) => (/[ -]/.test(piece) && made[piece]) || piece) ?? text; // a word alone in a list is a name to be typed: none, style
    }

    function whole(text, least, simple = false) {
        if (Object.hasOwn(made, text)) return made[text] || text;
        for (const one of patterns) {
            const found = one.weight >= least && one.test.exec(text);
            if (!found || (simple && (found.slice(1).some((value) => SEVERAL.test(value)) || (one.open && found[1].includes(": "))))) continue;
            const values = Object.fromEntries(one.order.map((number, i) => [number, sentence(found[i + 1], STRONG)]));
            return (made[one.key] || one.key).replace(/\{(\d)\}/g, (hole, number) => values[number] ?? hole);
        }
        return null;
    }

    // Several sentences: as many as possible are looked for together.
    function run(text, least) {
        const pieces = text.split(END), said = [];
        if (pieces.length < 2) return null;
        let any = false;
        for (let i = 0; i < pieces.length;) {
            let end = pieces.length, found = null;
            while (end > i && (found = end - i === pieces.length ? null : whole(pieces.slice(i, end).join(" "), least)) === null) end -= 1;
            said.push(found ?? sentence(pieces[i], least));
            any = any || said[said.length - 1] !== pieces[i];
            i = Math.max(end, i + 1);
        }
        return any ? said.reduce((a, b) => (/[。！？…]$/.test(a) ? a + b : `${a} ${b}`)) : null;
    }

    function joined(text, mark, say, all = false) {
        const pieces = text.split(mark);
        if (pieces.length < 2) return null;
        const said = pieces.map(say), changed = (piece, i) => piece !== pieces[i];
        return (all ? said.every(changed) : said.some(changed)) ? said.join(tuner.t(mark)) : null;
    }

    // `optim.lr: ...`, `file.safetensors: ...`
    function after(text, least, say = (rest) => sentence(rest, least)) {
        const at = text.indexOf(": ");
        if (at < 0) return null;
        const head = text.slice(0, at), rest = text.slice(at + 2), said = say(rest);
        return said === null || said === rest ? null : `${made[head] || head}${tuner.t(": ")}${said}`;
    }

    // `a name.png has no caption.`: the name is whatever stands before words that the table has
    function predicate(text, least) {
        const end = text.endsWith(".") ? text.slice(0, -1) : text;
        for (let at = end.indexOf(" "); at > 0; at = end.indexOf(" ", at + 1)) {
            const rest = end.slice(at + 1), said = /^[a-z]\S* /.test(rest) ? whole(rest, least) : null;
            if (said !== null) return `${end.slice(0, at)} ${said}${end === text ? "" : tuner.t(". ").trim()}`;
        }
        return null;
    }
})(window.tuner);

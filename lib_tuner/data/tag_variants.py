"""One tag in several spellings: other capitals and blanks, singular and plural, typing errors. Found over the whole data set, in time that grows with its tags."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from .tag_edits import key

_SHORTEST = 5  # letters; shorter words are one letter away from too many others
_WORDS = frozenset((  # real words that are one letter away from each other, where no tokenizer says so
    "shirt skirt short shorts shirts skirts hand hands band bow box bowl ball bell belt boot boots book bed red bad hat cat bat rat hair chair pair fair eye eyes ear ears dear bear "
    "dress press face lace place side wide hide ride tide back black block light night right sight tight fight coat boat goat road river rover tower power flower flowers lower glass "
    "glasses grass class gloves glove love dove stand sand hard card long song lone lips tips hips house mouse horse sun gun run moon soon room wing ring king string spring swing "
    "wall ball tall fall hall tail nail rail sail mail tree three free bird bard cape cake lake snake shake rain train brain wine line lines fire wire five fine collar dollar"
).split())  # fmt: skip


def spellings(counts: Mapping[str, int]) -> list[tuple[str, list[str]]]:
    """(the most frequent spelling, the others) of tags that are the same by `tag_edits.key` and written differently."""
    forms: dict[str, list[str]] = {}
    for tag in counts:
        forms.setdefault(key(tag), []).append(tag)
    ranked = (sorted(tags, key=lambda tag: (-counts[tag], tag)) for tags in forms.values() if len(tags) > 1)
    return sorted((first, others) for first, *others in ranked)


def plurals(keys: Mapping[str, int]) -> list[tuple[str, str]]:
    """(more frequent, less frequent) of tags that differ in the plural of the last word; `keys` counts by `tag_edits.key`."""
    pairs = [(one, many) for one in keys for many in _plural_of(one) if many in keys and not one[-1:].isdigit()]
    return sorted((one, many) if keys[one] >= keys[many] else (many, one) for one, many in pairs)


def _plural_of(tag: str) -> tuple[str, ...]:
    ending = tag[-1:]
    if not ending.isalpha() or tag.endswith("ss"):
        return (f"{tag}es",) if tag.endswith("ss") else ()
    return (f"{tag}s", f"{tag}es") + ((f"{tag[:-1]}ies",) if ending == "y" else ())


# ---- typing errors ---------------------------------------------------------------------------------------------------


def typos(keys: Mapping[str, int], tokens: Callable[[str], int] | None = None, frequent: int = 4) -> list[tuple[str, str]]:
    """(tag used once, the frequent tag that was meant): one letter missing, too many, another, or two neighbours exchanged.

    Looked up in an index of what frequent tags are with one letter less (SymSpell, W. Garbe 2012), so that ten thousand tags take a second. Left alone is what
    may be a word of its own: where the words that differ have digits, are short (under five letters; four will do where
    letters are exchanged or tokens are counted), are one another's plural, where the rare one occurs in other tags of the
    data set or in a table, and where it is a single one of CLIP's tokens by `tokens(text)`, as common words are and errors are not.
    """
    common = [tag for tag, count in keys.items() if count >= frequent and len(tag) >= _SHORTEST - 1]
    index: dict[str, list[str]] = {}
    for tag in common:
        for short in {tag, *_shorter(tag)}:
            index.setdefault(short, []).append(tag)
    uses = Counter(word for tag, count in keys.items() for word in set(tag.split()) for _ in range(min(count, 2)))
    found = []
    for rare in (tag for tag, count in keys.items() if count == 1):
        near = {tag for short in {rare, *_shorter(rare)} for tag in index.get(short, ())}
        meant = [tag for tag in near if one_edit(rare, tag) and _is_error(rare, tag, uses, tokens)]
        if meant:
            found.append((rare, min(meant, key=lambda tag: (-keys[tag], tag))))
    return sorted(found)


def _shorter(tag: str) -> Iterator[str]:
    return (tag[:i] + tag[i + 1 :] for i in range(len(tag)))


def one_edit(a: str, b: str) -> bool:
    """Whether one letter put in, left out, replaced, or exchanged with its neighbour makes b of a (Damerau's distance of 1)."""
    if a == b or abs(len(a) - len(b)) > 1:
        return False
    start = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    rest_a, rest_b = a[start:], b[start:]
    if len(a) != len(b):
        return rest_a[1:] == rest_b or rest_a == rest_b[1:]
    return rest_a[1:] == rest_b[1:] or (rest_a[:2] == rest_b[1::-1] and rest_a[2:] == rest_b[2:])


def _is_error(rare: str, frequent: str, uses: Mapping[str, int], tokens: Callable[[str], int] | None) -> bool:
    """Whether the words that differ are no two words of their own."""
    mine, its = _different(rare.split(), frequent.split())
    if any(letter.isdigit() for word in (*mine, *its) for letter in word):
        return False
    if len(mine) != 1 or len(its) != 1:  # a blank too many or too few
        return len("".join(mine)) >= _SHORTEST
    word, meant = mine[0], its[0]
    exchanged = sorted(word) == sorted(meant)  # hiar for hair; a letter more or less makes too many short words of another
    if max(len(word), len(meant)) < (4 if exchanged or tokens else _SHORTEST) or meant in _plural_of(word) or word in _plural_of(meant):
        return False
    known = word in _WORDS or uses.get(word, 0) > 1 or (tokens is not None and tokens(word) == 1)
    return not known


def _different(a: list[str], b: list[str]) -> tuple[list[str], list[str]]:
    """The words between the equal ones at the start and at the end."""
    while a and b and a[0] == b[0]:
        a, b = a[1:], b[1:]
    while a and b and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    return a, b


def counted_keys(tags: Iterable[Iterable[str]]) -> Counter[str]:
    """In how many captions each tag is, by `tag_edits.key`."""
    known: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for caption in tags:
        counts.update({known.get(tag) or known.setdefault(tag, key(tag)) for tag in caption})
    return counts

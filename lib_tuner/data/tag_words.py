"""What kind of thing a tag names, and which tags exclude each other. Tables of our own after the habits of booru taggers: small, and folklore, no standard.

A tag is looked up as a whole, then by its last word (`red scarf` is clothing for `scarf`). What no table knows is of no kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from .tag_edits import key


def _words(text: str) -> frozenset[str]:
    return frozenset(part.strip() for part in text.split(",") if part.strip())


COLOURS = _words("black, white, grey, gray, silver, red, orange, yellow, blonde, brown, green, blue, aqua, cyan, purple, violet, pink, golden, gold")
LENGTHS = _words("short, medium, long, very long, absurdly long, shoulder-length")

COUNTS = _words("1girl, 2girls, 3girls, 4girls, 5girls, 6+girls, multiple girls, 1boy, 2boys, 3boys, 4boys, 5boys, 6+boys, multiple boys, 1other, solo, solo focus, no humans, "
                "1woman, 1man, woman, man, girl, boy, person, everyone, couple, group, crowd")  # fmt: skip
SEVERAL = _words("2girls, 3girls, 4girls, 5girls, 6+girls, multiple girls, 2boys, 3boys, 4boys, 5boys, 6+boys, multiple boys, couple, group, crowd, everyone, multiple views, "
                 "multiple persons, comic, 4koma, reference sheet, character sheet, collage")  # fmt: skip

# kind -> (whole tags, last words)
KINDS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "trait": (_words("ahoge, bangs, blunt bangs, parted bangs, swept bangs, sidelocks, ponytail, high ponytail, side ponytail, twintails, low twintails, braid, twin braids, bob cut, "
                     "hair bun, double bun, heterochromia, freckles, mole, mole under eye, mole under mouth, scar, scar across eye, scar on face, tattoo, beard, mustache, "
                     "pointy ears, animal ears, cat ears, dog ears, fox ears, rabbit ears, horse ears, tail, cat tail, fox tail, dog tail, horns, wings, halo, fangs, fang, "
                     "dark skin, dark-skinned female, dark-skinned male, pale skin, tan, muscular, abs, petite, slit pupils, thick eyebrows, hair between eyes, eyepatch"),
              _words("hair, eyes, ears, tail, horns, wings, skin, bangs, braid, braids, ponytail, twintails, freckles, eyebrows, eyelashes, pupils, scar, mole, beard")),
    "clothing": (_words("barefoot, nude, topless, school uniform, serafuku, maid, armor, bare shoulders, cleavage cutout, jewelry, glasses, sunglasses"),
                 _words("shirt, skirt, dress, jacket, coat, pants, jeans, shorts, sweater, hoodie, vest, kimono, yukata, uniform, suit, swimsuit, bikini, leotard, apron, cape, cloak, "
                        "scarf, necktie, bowtie, ribbon, bow, hat, cap, beret, hood, helmet, crown, tiara, hairband, headband, hairclip, ornament, headwear, footwear, shoes, boots, heels, "
                        "sandals, sneakers, socks, kneehighs, thighhighs, pantyhose, stockings, gloves, sleeves, collar, belt, necklace, choker, earrings, bracelet, ring, glasses, mask, "
                        "armor, underwear, panties, bra, clothes, outfit, costume, robe, blouse, t-shirt, cardigan, bag, backpack")),
    "pose": (_words("sitting, standing, lying, on back, on side, on stomach, kneeling, squatting, crouching, seiza, wariza, indian style, crossed legs, crossed arms, arms up, arm up, "
                    "hand up, hands up, hand on hip, hands on hips, arms behind back, arms at sides, outstretched arms, outstretched arm, spread arms, leaning forward, leaning back, "
                    "walking, running, jumping, dancing, flying, fighting stance, bent over, all fours, stretching, v, peace sign, waving, pointing, salute, hugging, holding hands, "
                    "looking back, head tilt, leg up, standing on one leg, contrapposto, sleeping, t-pose"),
             _words("pose, stance")),
    "expression": (_words("smile, grin, smirk, frown, laughing, crying, tears, angry, sad, happy, surprised, blush, light smile, open mouth, closed mouth, parted lips, closed eyes, "
                          "one eye closed, wink, pout, tongue, tongue out, expressionless, serious, :d, :3, :o, :p, ^_^, >_<, @_@, clenched teeth, sweatdrop, looking at viewer, "
                          "looking away, looking to the side, looking up, looking down"),
                   _words("expression")),
    "framing": (_words("full body, upper body, lower body, cowboy shot, portrait, close-up, closeup, wide shot, very wide shot, from above, from below, from side, from behind, from "
                       "front, dutch angle, profile, head out of frame, feet out of frame, cropped legs, cropped torso, face, pov, fisheye, foreshortening, straight-on, front view, "
                       "side view, back view, depth of field, macro"),
                _words("shot, angle, view")),
    "background": (_words("indoors, outdoors, sky, blue sky, night, night sky, day, sunset, sunrise, evening, rain, snow, snowing, cloud, clouds, tree, trees, forest, grass, flower, "
                          "flowers, field, beach, ocean, sea, water, river, mountain, mountains, city, cityscape, street, road, building, room, bedroom, bathroom, kitchen, classroom, "
                          "office, window, wall, bed, chair, couch, table, desk, garden, park, bridge, ruins, temple, church, library, cafe, shop, train interior, underwater, space, "
                          "starry sky, moon, full moon, scenery, landscape, nature, bokeh, blurry background"),
                   _words("background, sky, room, street, forest, city, interior, field")),
    "light": (_words("sunlight, backlighting, rim lighting, dappled sunlight, light rays, shadow, dark, low light, soft light, studio lighting, natural light, moonlight, neon lights, "
                     "candlelight, lens flare, cinematic lighting"), _words("light, lighting, sunlight")),
    "medium": (_words("photo, photograph, photography, photorealistic, realistic, painting, oil painting, watercolor, watercolour, watercolor (medium), acrylic, gouache, ink, sketch, "
                      "drawing, line art, lineart, illustration, digital art, digital painting, traditional media, colored pencil (medium), pencil, graphite (medium), charcoal, pastel, "
                      "pixel art, vector art, 3d, 3d render, cgi, anime, anime coloring, anime screencap, manga, cartoon, comic, concept art, impressionism, art nouveau, ukiyo-e, "
                      "monochrome, greyscale, grayscale, sepia, spot color, limited palette, flat color, cel shading, film grain, screenshot, official art, fanart, game cg"),
               _words("style, medium, painting, art, drawing, illustration, render")),
    "quality": (_words("masterpiece, best quality, high quality, good quality, normal quality, low quality, worst quality, highres, absurdres, lowres, hires, detailed, highly "
                       "detailed, extremely detailed, intricate, 4k, 8k, hd, uhd, sharp focus, professional, award winning, trending on artstation, artstation, beautiful, stunning, "
                       "aesthetic, very aesthetic, amazing quality, newest, recent"),
                _words("quality, artstation")),
    "overlay": (_words("watermark, signature, artist name, web address, username, twitter username, patreon username, logo, dated, copyright name, copyright notice, artist logo, "
                       "text, english text, japanese text, chinese text, subtitled, speech bubble, character name, jpeg artifacts, sample watermark, border, letterboxed, pillarboxed"),
                _words("watermark, signature, username")),
    "count": (COUNTS, _words("girls, boys")),
}  # fmt: skip
PERSONAL = ("trait", "clothing", "pose", "expression")


@lru_cache(maxsize=65536)
def kind_of(tag: str) -> str:
    """The kind of thing that a tag names, one of KINDS, or "" where no table knows it."""
    words = key(tag)
    whole = next((kind for kind, (tags, _) in KINDS.items() if words in tags), "")
    last = words.rsplit(" ", 1)[-1]
    return whole or next((kind for kind, (_, lasts) in KINDS.items() if last in lasts), "")


# ---- what excludes what ----------------------------------------------------------------------------------------------


def _coloured(noun: str) -> frozenset[str]:
    return frozenset(f"{colour} {noun}" for colour in COLOURS)


# name -> (tags of which a picture has one only, tags that allow several, whether it holds for one person alone)
EXCLUSIVE: dict[str, tuple[frozenset[str], frozenset[str], bool]] = {
    "number of girls": (_words("1girl, 2girls, 3girls, 4girls, 5girls, 6+girls"), _words("multiple views, comic, 4koma, collage"), False),
    "number of boys": (_words("1boy, 2boys, 3boys, 4boys, 5boys, 6+boys"), _words("multiple views, comic, 4koma, collage"), False),
    "alone or not": (_words("solo, 2girls, 3girls, 4girls, 5girls, 6+girls, multiple girls, 2boys, 3boys, 4boys, 5boys, 6+boys, multiple boys"), _words(""), False),
    "someone or no one": (_words("no humans, solo, 1girl, 1boy, 2girls, 2boys"), _words(""), False),
    "hair colour": (_coloured("hair"), _words("multicolored hair, multicoloured hair, two-tone hair, gradient hair, streaked hair, colored inner hair, colored tips, split-color hair, "
                                              "rainbow hair, light brown hair, dyed hair"), True),
    "eye colour": (_coloured("eyes"), _words("heterochromia, multicolored eyes, two-tone eyes, gradient eyes"), True),
    "hair length": (_words("short hair, medium hair, long hair"), _words("short hair with long locks"), True),
    "indoors or outdoors": (_words("indoors, outdoors"), _words("window, doorway, balcony, veranda, porch, multiple views, comic, collage"), False),
    "time of day": (_words("day, night, sunset, sunrise"), _words("multiple views, comic, collage"), False),
    "mouth": (_words("open mouth, closed mouth"), _words(""), True),
    "gaze": (_words("looking at viewer, looking away"), _words(""), True),
    "framing": (_words("full body, upper body, lower body, cowboy shot, close-up"), _words("multiple views, reference sheet, character sheet, comic, collage"), True),
    "side seen": (_words("from front, from behind, straight-on"), _words("multiple views, reference sheet, character sheet"), True),
    "height of the view": (_words("from above, from below"), _words("multiple views"), True),
    "posture": (_words("sitting, standing, lying, kneeling, squatting, walking, running, jumping"), _words("multiple views, reference sheet"), True),
    "feet": (_words("barefoot, shoes, boots, sandals, sneakers, high heels"), _words("shoes removed, single shoe, footwear removed, boots removed"), True),
    "plain background": (_coloured("background"), _words("two-tone background, gradient background, split background"), False),
}  # fmt: skip


def conflicts(keys: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """Groups of which a caption has several: (name of the group, its tags as typed). `keys` maps `tag_edits.key` of each tag to the tag.

    What holds for one person alone is not looked for where the caption speaks of several.
    """
    several = not SEVERAL.isdisjoint(keys) or {"1girl", "1boy"} <= keys.keys()
    found = []
    for name, (group, excuses, alone) in EXCLUSIVE.items():
        here = [tag for words, tag in keys.items() if words in group]
        if len(here) > 1 and excuses.isdisjoint(keys) and not (alone and several) and _really(name, {key(tag) for tag in here}):
            found.append((name, here))
    return found


def _really(name: str, here: set[str]) -> bool:
    """Whether these exclude each other: of the groups about number, two that both say `several` do not."""
    if name == "alone or not":
        return "solo" in here
    return name != "someone or no one" or "no humans" in here

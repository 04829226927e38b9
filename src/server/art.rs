//! The images of items: SVG that depends only on the hash from which the name is made, so that every shard and every
//! run produce the same image.
//!
//! The quality in an item's name selects the colours, and the thing selects the drawing. The bits of the hash that the
//! name does not use select everything else, so items with the same name differ in the background.

use crate::sale::ids::{ItemId, SaleId};
use crate::sale::item_name::ItemName;
use std::fmt;

/// The image of an item of a sale.
#[derive(Clone, Copy, Debug)]
pub struct ItemArt(pub SaleId, pub ItemId);

/// Letters of the colours. In the SVG below, `$` and a letter stand for a colour: ground, pattern, card, main, dark,
/// light, accent.
const LETTERS: &str = "gpcmdla";

/// The colours of one quality: all colours except the accent, and the accents to choose from.
type Palette = ([&'static str; 6], [&'static str; 4]);

const WARM: [&str; 4] = ["#e4572e", "#c8553d", "#d1495b", "#a23b72"];
const COOL: [&str; 4] = ["#2a9d8f", "#3d6fb6", "#5b5ea6", "#1f7a8c"];
const BRIGHT: [&str; 4] = ["#ffd166", "#ff7b54", "#ff5d8f", "#6ee7b7"];

/// Palettes in the order of the qualities.
const PALETTES: [Palette; 16] = [
    (["#fbe3b3", "#f6cf85", "#fff6e0", "#e08a1e", "#7a4310", "#f7c566"], COOL),
    (["#c9f0e6", "#a3e3d3", "#f1fffb", "#18a999", "#0b4f4a", "#7fe0cf"], WARM),
    (["#bcd3f7", "#9bbcf0", "#eef4ff", "#1f4fc4", "#10245c", "#6d9bf2"], BRIGHT),
    (["#3b3346", "#4a4058", "#efe6dd", "#7b2d43", "#2a1a26", "#c98a96"], ["#c9a24b", "#4f7f73", "#5c7fa8", "#d98e5f"]),
    (["#2b1659", "#3c2176", "#d9ccff", "#7c3aed", "#2a0f66", "#c4a5ff"], BRIGHT),
    (["#dfe3c0", "#c9cf9b", "#f9f8e8", "#b5502b", "#33401f", "#e79a63"], ["#4f7d3a", "#2f6f6b", "#8a6d1f", "#6b3f73"]),
    (["#fff0b8", "#ffe07a", "#fffbea", "#e2ab14", "#6e4a00", "#ffdc62"], WARM),
    (["#dcd8e6", "#cbc5da", "#f6f4fa", "#8d86a8", "#45405c", "#bdb6d3"], ["#b5838d", "#6d8fa8", "#84a07c", "#c4a06a"]),
    (["#ece3d0", "#dfd2b8", "#fffdf6", "#d8c49a", "#6b5636", "#f3e7c8"], ["#8c5e58", "#5f7a61", "#4f6d8a", "#b0723c"]),
    (["#ffd9e3", "#ffbccd", "#fff5f8", "#f0437a", "#7d1440", "#ff9dbb"], ["#ffb703", "#219ebc", "#43aa8b", "#7b5cd6"]),
    (["#ffd5cc", "#ffb9aa", "#fff4f0", "#d62828", "#5f0f16", "#f77f6e"], ["#f4a726", "#2a7f9e", "#3c8d5a", "#46437f"]),
    (["#1d2747", "#2a3760", "#d8def0", "#8a97c2", "#27305a", "#c5cdea"], BRIGHT),
    (["#fbe0cf", "#f5c9ae", "#fff8f2", "#e58e6b", "#75402f", "#f9c1a4"], ["#7a9e7e", "#5b8fa8", "#b56576", "#d9a441"]),
    (["#0f3d4c", "#175366", "#d3f3ea", "#1c8f7a", "#0a3b44", "#74d8b4"], BRIGHT),
    (["#dfe0fb", "#c3ebea", "#fffafd", "#a48fd8", "#4c3f7d", "#d5c6f5"], ["#f08fb0", "#56b8b8", "#f2b872", "#6f9be8"]),
    (["#d5dce3", "#bdc8d3", "#f6f9fb", "#7d8fa1", "#2c3947", "#c3d0dc"], WARM),
];

/// Patterns of the background, as tiles of 16 by 16.
const PATTERNS: [&str; 8] = [
    "<circle cx='8' cy='8' r='3.5'/>",
    "<path d='M0 0h16v7H0z'/>",
    "<path d='M0 0h8v8H0zM8 8h8v8H8z'/>",
    "<path d='M8 2a6 6 0 1 1-.1 0zm0 3a3 3 0 1 0 .1 0z'/>",
    "<path d='M8 2l6 11H2z'/>",
    "<path d='M0 4q4-6 8 0t8 0v5q-4 6-8 0T0 9z'/>",
    "<path d='M6 1h4v5h5v4h-5v5H6v-5H1V6h5z'/>",
    "<path d='M8 0l2 6 6 2-6 2-2 6-2-6-6-2 6-2z'/>",
];

/// Scales of the pattern.
const SCALES: [&str; 4] = ["1", "1.25", "1.75", "2.5"];

/// Shapes between the background and the drawing.
const CARDS: [&str; 4] = [
    "<circle cx='100' cy='100' r='78'/>",
    "<rect x='26' y='26' width='148' height='148' rx='34'/>",
    "<path d='M100 14l74 43v86l-74 43-74-43V57z' stroke='$c' stroke-width='8' stroke-linejoin='round'/>",
    "<circle cx='100' cy='100' r='73' stroke='$c' stroke-width='20' stroke-linecap='round' stroke-dasharray='0 \
     19.11'/>",
];

/// Drawings in the order of the things. The base of each is at about y = 152.
const DRAWINGS: [&str; 16] = [
    // Anvil, with a hammer on it.
    "<g fill='$d'><rect x='54' y='138' width='92' height='14' rx='3'/>\
     <rect x='112' y='38' width='40' height='19' rx='3'/></g><path d='M28 74h34v-8h90v18h-14c-16 0-22 10-22 21s8 19 \
     22 19v14H62v-14c14 0 22-8 22-19 0-5-2-8-6-8-24 0-42-9-50-23z' fill='$m'/><path d='M62 66h90v7H62z' fill='$l'/>\
     <rect x='58' y='43' width='56' height='9' rx='4' fill='$a'/>",
    // Bicycle.
    "<g fill='none' stroke-width='7' stroke-linecap='round' stroke-linejoin='round'><g stroke='$d'>\
     <circle cx='62' cy='122' r='29'/><circle cx='140' cy='122' r='29'/></g>\
     <path d='M62 122l24-40h38l-24 40zm38 0L82 72m58 50l-20-56h16' stroke='$m'/>\
     <path d='M72 72h22m42-6q8 0 8 8' stroke='$a'/></g><g fill='$l'><circle cx='62' cy='122' r='7'/>\
     <circle cx='140' cy='122' r='7'/></g><circle cx='100' cy='122' r='9' fill='$a'/>",
    // Compass.
    "<circle cx='100' cy='41' r='10' fill='none' stroke='$d' stroke-width='6'/>\
     <rect x='92' y='44' width='16' height='14' fill='$d'/><circle cx='100' cy='104' r='52' fill='$m'/>\
     <circle cx='100' cy='104' r='41' fill='$l'/><path d='M97 65h6v10h-6zm0 68h6v10h-6zm-36-32h10v6H61zm68 \
     0h10v6h-10z' fill='$d'/><g transform='rotate(32 100 104)'><path d='M100 70l11 34H89z' fill='$a'/>\
     <path d='M100 138l11-34H89z' fill='$d'/></g><circle cx='100' cy='104' r='5' fill='$c'/>",
    // Drum, with its sticks.
    "<path d='M50 78v60c0 19 100 19 100 0V78z' fill='$m'/><path d='M50 86l14 54 18-44 18 53 18-53 18 44 14-54' \
     fill='none' stroke='$l' stroke-width='4'/><path d='M46 132v9c0 20 108 20 108 0v-9c0 20-108 20-108 0z' \
     fill='$d'/><ellipse cx='100' cy='80' rx='54' ry='21' fill='$d'/>\
     <ellipse cx='100' cy='76' rx='50' ry='17' fill='$c'/><g stroke='$a' stroke-width='6' stroke-linecap='round'>\
     <path d='M52 36l46 36m52-38l-40 38'/></g><g fill='$d'><circle cx='99' cy='73' r='6'/>\
     <circle cx='109' cy='73' r='6'/></g>",
    // Easel, with a painting.
    "<path d='M100 36v110m-8-100L58 152m50-106l34 106' stroke='$d' stroke-width='7' stroke-linecap='round'/>\
     <rect x='50' y='52' width='100' height='72' rx='3' fill='$m'/><path d='M57 59h86v58H57z' fill='$c'/>\
     <circle cx='122' cy='76' r='10' fill='$a'/><path d='M57 117V98l24-22 22 22 12-10 28 22v7z' fill='$l'/>\
     <path d='M57 117v-8l24-10 30 18z' fill='$m'/><rect x='46' y='122' width='108' height='9' rx='3' fill='$d'/>",
    // Fiddle and bow.
    "<g transform='rotate(28 100 100)'><path d='M144 40v118' stroke='$a' stroke-width='6' stroke-linecap='round'/>\
     <path d='M138 50v98' stroke='$d' stroke-width='2'/><path d='M100 74c23 0 27 17 19 26-6 6-4 12 3 18 14 12 7 \
     42-22 42s-36-30-22-42c7-6 9-12 3-18-8-9-4-26 19-26z' fill='$m'/><path d='M95 34h10v76H95z' fill='$d'/>\
     <path d='M93 28h14v14H93zm-8 2h8v4h-8zm22 0h8v4h-8zm-22 8h8v4h-8zm22 0h8v4h-8zM93 136h14l-3 18h-8z' fill='$d'/>\
     <path d='M84 112q-6 8 1 17m31-17q6 8-1 17' fill='none' stroke='$d' stroke-width='3'/>\
     <rect x='87' y='122' width='26' height='5' rx='2' fill='$l'/><path d='M98 42v94m4-94v94' stroke='$l'/></g>",
    // Globe.
    "<path d='M118 38a54 54 0 1 1-63 79' fill='none' stroke='$d' stroke-width='7' stroke-linecap='round'/>\
     <path d='M96 138h8v12h-8z' fill='$d'/><path d='M68 154c0-8 14-10 32-10s32 2 32 10z' fill='$d'/>\
     <circle cx='100' cy='88' r='44' fill='$l'/><path d='M60 72c8-16 22-26 40-28 6 6 4 12-4 15 2 8-6 9-12 12-3 8-10 \
     6-14 12-4 2-9-3-10-11zm30 22c8-4 20 0 22 8 1 8-8 14-8 26-8-4-10-14-10-20-4-4-8-8-4-14zm34-30c7-2 11-1 14 4 3 6 \
     5 11 6 18-6 6-14 4-18-4-6-4-8-14-2-18z' fill='$m'/><circle cx='118' cy='38' r='7' fill='$a'/>\
     <circle cx='55' cy='117' r='7' fill='$a'/>",
    // Hammock between two palms.
    "<path d='M50 152q-5-46 6-88m94 88q5-46-6-88' fill='none' stroke='$d' stroke-width='9' stroke-linecap='round'/>\
     <path d='M56 66c-16-12-24-2-27 8 9-5 16-7 25-5-7 7-9 14-7 23 3-11 7-18 10-21 6 3 11 9 12 19 4-11 1-19-6-23 9-2 \
     16 1 23 9 0-13-10-20-23-15 1-10 4-13 9-16-12-2-18 8-16 21zm88 0c16-12 24-2 27 8-9-5-16-7-25-5 7 7 9 14 7 \
     23-3-11-7-18-10-21-6 3-11 9-12 19-4-11-1-19 6-23-9-2-16 1-23 9 0-13 10-20 23-15-1-10-4-13-9-16 12-2 18 8 16 \
     21z' fill='$a'/><path d='M50 100q50 18 100 0-14 42-50 42t-50-42z' fill='$m'/>\
     <path d='M70 106q4 20 20 35l9 1q-16-18-18-34zm30 3q0 18 6 33l9-2q-6-14-5-32zm27-3q0 10-6 28l9-8q4-10 6-22z' \
     fill='$l'/>",
    // Inkwell and quill.
    "<path d='M104 72C100 46 118 26 160 22c4 30-14 50-40 52l-12 22-5-2z' fill='$a'/>\
     <path d='M105 94q10-38 44-62' fill='none' stroke='$c' stroke-width='3'/>\
     <path d='M58 108c0-12 14-14 20-20v-8h44v8c6 6 20 8 20 20v38a6 6 0 0 1-6 6H64a6 6 0 0 1-6-6z' fill='$m'/>\
     <path d='M58 122h84v24a6 6 0 0 1-6 6H64a6 6 0 0 1-6-6z' fill='$d'/>\
     <rect x='72' y='74' width='56' height='11' rx='4' fill='$d'/><path d='M66 108c0-5 4-8 8-10v42h-8z' fill='$l'/>\
     <path d='M84 128h32v14H84z' fill='$c'/>",
    // Jacket.
    "<path d='M78 46l-22 8c-8 3-12 12-14 26l-8 54 22 5 10-45v58h68V94l10 45 22-5-8-54c-2-14-6-23-14-26l-22-8z' \
     fill='$m'/><path d='M66 94v58m68-58v58' stroke='$d' stroke-width='3'/><path d='M80 44h40l-20 58z' fill='$c'/>\
     <path d='M96 52h8l4 32-8 12-8-12z' fill='$a'/><path d='M78 46l22 62 22-62 12 20-16 12 4 10-22 32-22-32 \
     4-10-16-12z' fill='$d'/><path d='M74 124h18v5H74zm34 0h18v5h-18z' fill='$l'/>\
     <circle cx='100' cy='132' r='3' fill='$l'/><circle cx='100' cy='144' r='3' fill='$l'/>",
    // Kettle, steaming.
    "<path d='M66 92c-8-62 76-62 68 0' fill='none' stroke='$d' stroke-width='9' stroke-linecap='round'/>\
     <path d='M134 108c16-4 14-22 28-28l9 9c-12 8-8 34-30 43z' fill='$m'/>\
     <path d='M54 144c-8-42 14-66 46-66s54 24 46 66z' fill='$m'/><path d='M66 132c-4-22 4-36 16-42-4 14-6 26-4 42z' \
     fill='$l'/><path d='M74 82c4-12 48-12 52 0z' fill='$d'/><rect x='50' y='142' width='100' height='10' rx='4' \
     fill='$d'/><circle cx='100' cy='68' r='7' fill='$a'/><path d='M172 70q-8-8 0-16t0-16' fill='none' stroke='$a' \
     stroke-width='5' stroke-linecap='round'/>",
    // Lantern.
    "<path d='M80 56a20 20 0 1 1 40 0' fill='none' stroke='$a' stroke-width='6'/>\
     <path d='M88 46h24l16 20H72z' fill='$d'/><path d='M68 66h64v72H68z' fill='$l'/>\
     <path d='M100 76c6 14 18 20 18 36a18 18 0 0 1-36 0c0-8 4-12 8-16 0 6 4 8 6 6 4-4 0-16 4-26z' fill='orange'/>\
     <path d='M100 102c4 6 8 10 8 16a8 8 0 0 1-16 0c0-6 4-10 8-16z' fill='moccasin'/>\
     <path d='M68 66h7v72h-7zm57 0h7v72h-7z' fill='$m'/><path d='M66 132h68l8 20H58z' fill='$m'/>\
     <path d='M58 144h84v8H58zm6-82h72v7H64z' fill='$d'/>",
    // Mandolin.
    "<g transform='rotate(-30 100 104)'><path d='M94 26h12v84H94z' fill='$d'/>\
     <path d='M88 20h24l-3 26H91zm-8 4h8v4h-8zm0 10h9v4h-9zm32-10h8v4h-8zm-1 10h9v4h-9z' fill='$d'/>\
     <path d='M92 72h16c2 14 10 18 18 28 22 28 8 66-26 66s-48-38-26-66c8-10 16-14 18-28z' fill='$m'/>\
     <path d='M94 46h12v62H94z' fill='$a'/><circle cx='100' cy='120' r='16' fill='$l'/>\
     <circle cx='100' cy='120' r='11' fill='$d'/><rect x='82' y='144' width='36' height='6' rx='2' fill='$d'/>\
     <path d='M97 46v98m6-98v98' stroke='$c' stroke-width='1.5'/></g>",
    // Notebook and pencil.
    "<rect x='58' y='46' width='84' height='106' rx='8' fill='$d'/><path d='M64 42h68v104H64z' fill='$c'/>\
     <path d='M62 40h68a8 8 0 0 1 8 8v90a8 8 0 0 1-8 8H62z' fill='$m'/>\
     <path d='M62 40h12v106H62a6 6 0 0 1-6-6V46a6 6 0 0 1 6-6z' fill='$d'/>\
     <rect x='84' y='56' width='42' height='28' rx='4' fill='$c'/><path d='M90 64h30v4H90zm0 9h20v4H90z' fill='$l'/>\
     <g transform='rotate(24 128 120)'><path d='M121 68h14v68l-7 16-7-16z' fill='$a'/>\
     <path d='M121 68h14v10h-14z' fill='$l'/><path d='M121 136h14l-7 16z' fill='$c'/>\
     <path d='M125 145h6l-3 7z' fill='$d'/></g>",
    // Orrery.
    "<path d='M96 100h8v44h-8z' fill='$d'/><path d='M66 152c0-8 14-11 34-11s34 3 34 11z' fill='$d'/>\
     <g fill='none' stroke='$m' stroke-width='4'><ellipse cx='100' cy='88' rx='34' ry='15'/>\
     <ellipse cx='100' cy='88' rx='64' ry='34'/></g><circle cx='100' cy='88' r='18' fill='$a'/>\
     <circle cx='70' cy='96' r='8' fill='$d'/><circle cx='150' cy='68' r='14' fill='$m'/>\
     <path d='M146 55a14 14 0 0 0-6 24q6-8 6-24z' fill='$l'/><circle cx='52' cy='110' r='11' fill='$l'/>\
     <circle cx='92' cy='56' r='6' fill='$d'/>",
    // Parasol.
    "<g transform='rotate(14 100 100)'><path d='M100 40v98q0 14 12 14t12-12' fill='none' stroke='$d' \
     stroke-width='7' stroke-linecap='round'/><path d='M34 102a66 66 0 0 1 132 0q-11-12-22 0-11-12-22 0-11-12-22 \
     0-11-12-22 0-11-12-22 0-11-12-22 0z' fill='$m'/><path d='M100 36C76 46 60 74 56 102q11-12 22 0c2-28 10-54 22-66 \
     12 12 20 38 22 66q11-12 22 0c-4-28-20-56-44-66z' fill='$l'/><path d='M100 36c-12 12-20 38-22 66q11-12 22 0 \
     11-12 22 0c-2-28-10-54-22-66z' fill='$m'/><circle cx='100' cy='33' r='6' fill='$a'/></g>",
];

impl fmt::Display for ItemArt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = ItemName(self.0, self.1);
        let (([ground, pattern, card, main, dark, light], accents), drawing) =
            (PALETTES[name.quality()], DRAWINGS[name.thing()]);
        let mut rest = name.hash() << 8;
        // Takes `bits` bits from the top of the hash.
        let mut take = |bits: u32| {
            let taken = rest >> (u64::BITS - bits);
            rest <<= bits;
            taken as usize
        };
        let (tile, scale, card_shape, accent) = (PATTERNS[take(3)], SCALES[take(2)], CARDS[take(2)], accents[take(2)]);
        // Less than 90 degrees, because some patterns look the same after a rotation by 90 degrees.
        let angle = take(3) * 11;
        let is_mirrored = take(1) == 1;
        let (ground, pattern) = if take(1) == 1 { (pattern, ground) } else { (ground, pattern) };
        let colours = [ground, pattern, card, main, dark, light, accent];
        let paint = |f: &mut fmt::Formatter<'_>, text: &str| {
            let mut parts = text.split('$');
            f.write_str(parts.next().unwrap_or_default())?;
            parts.try_for_each(|part| {
                let colour = LETTERS.find(&part[..1]).expect("a letter follows each $");
                f.write_str(colours[colour])?;
                f.write_str(&part[1..])
            })
        };
        let id = self.1.0;
        write!(
            f,
            "<svg xmlns='http://www.w3.org/2000/svg' width='400' height='400' viewBox='0 0 200 200' role='img'>\
             <title>{name}</title><pattern id='p{id}' width='16' height='16' patternUnits='userSpaceOnUse' \
             patternTransform='rotate({angle}) scale({scale})' fill='{pattern}'>{tile}</pattern>\
             <path d='M0 0h200v200H0z' fill='{ground}'/><path d='M0 0h200v200H0z' fill='url(#p{id})'/>\
             <g fill='{card}'>",
        )?;
        paint(f, card_shape)?;
        f.write_str("</g><ellipse cx='100' cy='153' rx='52' ry='5' fill-opacity='.15'/>")?;
        f.write_str(if is_mirrored { "<g transform='matrix(-1 0 0 1 200 0)'>" } else { "<g>" })?;
        paint(f, drawing)?;
        f.write_str("</g></svg>")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const BYTES_MAX: usize = 1536;

    fn art(item: u32) -> String {
        ItemArt(SaleId(498_692), ItemId(item)).to_string()
    }

    #[test]
    fn every_image_is_small_xml_that_names_its_item_and_asks_for_nothing() {
        let elements = ["svg", "title", "pattern", "path", "circle", "ellipse", "rect", "g"];
        // All drawings in all colours, and every background.
        for item in 0..20_000 {
            let text = art(item);
            assert!(text.len() <= BYTES_MAX, "{} bytes: {text}", text.len());
            assert!(!text.contains('$'), "a colour is missing: {text}");
            let document = roxmltree::Document::parse(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
            let root = document.root_element();
            assert_eq!(root.tag_name().namespace(), Some("http://www.w3.org/2000/svg"));
            assert_eq!(root.attribute("role"), Some("img"));
            let title = root.first_element_child().unwrap();
            assert_eq!((title.tag_name().name(), title.text()), ("title", Some(&*named(item))));
            for element in root.descendants().filter(roxmltree::Node::is_element) {
                assert!(elements.contains(&element.tag_name().name()), "{element:?}");
                for attribute in element.attributes() {
                    let (name, value) = (attribute.name(), attribute.value());
                    assert!(!name.starts_with("on") && !["href", "style", "src"].contains(&name), "{name}: {text}");
                    assert!(!value.contains(':') && (!value.contains("url") || value == format!("url(#p{item})")));
                }
            }
        }
    }

    #[test]
    fn no_two_items_of_a_sale_look_the_same() {
        let look = |item| art(item).replace(&named(item), "").replace(&format!("p{item}"), "p");
        let items = 20_000;
        assert_eq!((0..items).map(look).collect::<BTreeSet<_>>().len(), items as usize);
        assert_ne!(art(7), ItemArt(SaleId(498_693), ItemId(7)).to_string());
    }

    fn named(item: u32) -> String {
        ItemName(SaleId(498_692), ItemId(item)).to_string()
    }
}

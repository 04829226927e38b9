//! The planted bugs of products.

use crate::rules::{Bug, SIM};

/// The bugs, by subject.
pub const PRODUCTS: &[Bug] = &[
    Bug {
        what: "an image of the plan changes the policy of the shop",
        file: "http/shop.rs",
        place: "let is_name = «!name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b\"-.\".contains(&byte))»;",
        wrong: "true",
        caught_by: "http::shop",
    },
    Bug {
        what: "a browser keeps the policy of an earlier plan with a page that has not changed",
        file: "http/shop.rs",
        place: "crc32c::crc32c_append(«crc32c::crc32c(policy.as_bytes())», text.as_bytes())",
        wrong: "0",
        caught_by: "http::shop",
    },
    Bug {
        what: "a product is refused as sold out by the numbers of its sale",
        file: "sale/any_unit.rs",
        place: "let sold = self.all_published(sale, «product»)",
        wrong: "None",
        caught_by: SIM,
    },
    Bug {
        what: "nobody learns that a product is sold out",
        file: "sale/any_unit.rs",
        place: "let items = «part.items_of(product).len() as u64»;",
        wrong: "u64::from(part.terms.items)",
        caught_by: SIM,
    },
    Bug {
        what: "a freed unit is put among the free units of another product",
        file: "sale/product_stock.rs",
        place: "let number = «self.number_of(slot)»;\n        let units = &mut self.products[number];\n        let was_empty",
        wrong: "0 * self.number_of(slot)",
        caught_by: SIM,
    },
    Bug {
        what: "a unit that is free again is not published",
        file: "sale/product_stock.rs",
        place: "self.products[number].counts.reserved -= 1;\n            «self.note_changed(number);»\n        }\n    }\n\n    /// Counts",
        wrong: "",
        caught_by: SIM,
    },
    Bug {
        what: "a product whose units are taken stays among those with free units",
        file: "sale/product_stock.rs",
        place: "if «self.products[number].free.first().is_some()» {",
        wrong: "true",
        caught_by: SIM,
    },
    Bug {
        what: "a checkout that moves to the next sale gets a unit of any product",
        file: "sale/any_unit.rs",
        place: "«asked.of_product.then(|| self.rules.schedule.terms(sale)?.products.id_of(item.0)).flatten()»",
        wrong: "{ let _ = (asked, sale, item); None }",
        caught_by: SIM,
    },
    Bug {
        what: "a sale that has ended changes the published numbers of the next one",
        file: "operate/product_numbers.rs",
        place: "if «newest.load(Ordering::Relaxed) <= sale.0» {",
        wrong: "newest.load(Ordering::Relaxed) <= u32::MAX",
        caught_by: "operate::product_numbers",
    },
    Bug {
        what: "a new sale begins with the published numbers of an earlier one",
        file: "sale/product_stock.rs",
        place: "products[number].is_changed = true;\n                «changed.push(ProductIndex(number as u16));»",
        wrong: "",
        caught_by: "sale::product_stock",
    },
    Bug {
        what: "a plan names the products of a sale that was sold with other ones",
        file: "plan/planned_sale.rs",
        place: "let is_same = terms.items == items && «[Terms::NO_PRODUCTS, terms.products.fingerprint()].contains(&products)»;",
        wrong: "{ let _ = products; true }",
        caught_by: "plan::planned_sale",
    },
    Bug {
        what: "a product of a sale begins at another item in the database",
        file: "postgres/copy_rows.rs",
        place: "self.int4(«product.first»);",
        wrong: "0 * product.first",
        caught_by: "postgres::copy_rows",
    },
    Bug {
        what: "the rows of a sale that is open are dropped with those of a newer one",
        file: "postgres/maintenance.rs",
        place: "time => id(latest(now_ms.saturating_sub(time))).min(«needed.map_or(u32::MAX, |sale| sale.0)»),",
        wrong: "{ let _ = needed; u32::MAX }",
        caught_by: "postgres::maintenance",
    },
    Bug {
        what: "the log names products of a sale whose opening it does not have",
        file: "log_tool/unit_names.rs",
        place: "«self.opened.get(&sale).copied().unwrap_or(false)».then(",
        wrong: "true",
        caught_by: "log_tool::unit_names",
    },
    Bug {
        what: "units of a sale that has opened can get other names",
        file: "sale/product_ranges.rs",
        place: "chain(«unit_names.iter()».map(String::as_str))",
        wrong: "unit_names[..0].iter()",
        caught_by: "sale::product_ranges",
    },
];

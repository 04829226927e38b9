//! The receipt of a purchase.

use crate::http::bodies::PlannedUnit;
use crate::sale::ids::{ItemId, SaleId};
use crate::sale::item_name::ItemName;
use schemars::JsonSchema;
use serde::Serialize;

/// A purchase, which is durable.
#[derive(Serialize, JsonSchema)]
pub struct Receipt {
    /// Always true.
    pub success: bool,
    /// `success` as text.
    pub message: &'static str,
    /// Id of the sale.
    pub sale_id: u32,
    /// Id of the item.
    pub item_id: u32,
    /// Product and name of the item.
    #[serde(flatten)]
    pub unit: PlannedUnit,
    /// Name of the item.
    pub item_name: ItemName,
    /// Path of its image on this server. It names the sale, so that it shows this item also after the sale.
    #[schemars(with = "String")]
    pub item_image: ItemImageInSale,
}

/// The URL path of an item's image in a sale, which shows the same image in every later sale.
#[derive(Clone, Copy, Debug)]
pub struct ItemImageInSale(pub SaleId, pub ItemId);

impl Serialize for ItemImageInSale {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("/items/{}/image.svg?sale={}", self.1.0, self.0.0))
    }
}

impl Receipt {
    /// Creates the receipt of an item.
    pub fn new(sale: SaleId, item: ItemId, unit: PlannedUnit) -> Self {
        let (item_name, item_image) = (ItemName(sale, item), ItemImageInSale(sale, item));
        Receipt {
            success: true,
            message: "Purchase successful",
            sale_id: sale.0,
            item_id: item.0,
            unit,
            item_name,
            item_image,
        }
    }

    /// Appends the JSON that serde would write. serde looks at each byte of a text for what must be escaped, and copies each
    /// name and value on its own: that took more than a third of the instructions of a purchase.
    pub fn write(&self, out: &mut Vec<u8>) {
        let Receipt { success, message, sale_id, item_id, unit, item_name, item_image } = self;
        let (mut sale, mut item) = (itoa::Buffer::new(), itoa::Buffer::new());
        let (sale, item, [quality, thing]) = (sale.format(*sale_id), item.format(*item_id), item_name.words());
        debug_assert!((item_name.1.0, item_image.1.0, item_image.0.0) == (*item_id, *item_id, *sale_id));
        append(out, &[r#"{"success":"#, if *success { "true" } else { "false" }, r#","message":""#, message]);
        append(out, &[r#"","sale_id":"#, sale, r#","item_id":"#, item]);
        for (name, text) in [("product_id", unit.product_id), ("unit", unit.unit)] {
            let Some(text) = text else { continue };
            append(out, &[",\"", name, "\":"]);
            // A plan can have any text.
            serde_json::to_writer(&mut *out, text).expect("a text serializes to JSON");
        }
        append(out, &[r#","item_name":""#, quality, " ", thing, " ", item, r#"","item_image":"/items/"#, item]);
        append(out, &["/image.svg?sale=", sale, "\"}"]);
    }
}

fn append(out: &mut Vec<u8>, parts: &[&str]) {
    parts.iter().for_each(|part| out.extend_from_slice(part.as_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sale::item_name::ItemImage;
    use proptest::prelude::*;

    proptest! {
        /// The receipt is written as serde writes it, whatever a plan calls its items.
        #[test]
        fn a_receipt_is_what_serde_writes(sale: u32, item: u32, product: Option<String>, name: Option<String>) {
            let [product_id, unit] = [product, name].map(|text| text.map(|text| &*text.leak()));
            let receipt = Receipt::new(SaleId(sale), ItemId(item), PlannedUnit { product_id, unit });
            let mut written = Vec::new();
            receipt.write(&mut written);
            prop_assert_eq!(String::from_utf8(written).unwrap(), serde_json::to_string(&receipt).unwrap());
        }
    }

    #[test]
    fn an_image_in_a_sale_is_the_path_of_the_image_with_the_sale() {
        for (sale, item) in [(0, 0), (498_692, 42), (u32::MAX, u32::MAX)] {
            let path = serde_json::to_value(ItemImageInSale(SaleId(sale), ItemId(item))).unwrap();
            assert_eq!(path, format!("{}?sale={sale}", ItemImage(ItemId(item))));
        }
    }
}

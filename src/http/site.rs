//! What a server offers, by its settings and its plan.

use crate::http::shop::{Shop, ShopFile};
use crate::plan::catalogue::Catalogue;
use crate::sale::product_ranges::ProductId;

/// What a server offers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Site {
    /// The shop, if its paths exist.
    pub shop: Option<&'static Shop>,
    /// The products of the plan, if there is a plan.
    pub catalogue: Option<&'static Catalogue>,
}

impl Site {
    /// Returns the number of a product id, if a sale of the plan has such a product.
    pub fn product(self, text: &[u8]) -> Option<ProductId> {
        self.catalogue?.product_id(text)
    }

    /// Returns the file of the shop at `path`.
    pub fn shop_file(self, path: &str) -> Option<&'static ShopFile> {
        self.shop?.file(path)
    }
}

//! What a server offers, by its settings and its plan.

use crate::plan::catalogue::Catalogue;
use crate::sale::product_ranges::ProductId;

/// What a server offers.
#[derive(Clone, Copy, Debug)]
pub struct Site {
    /// Whether the paths of the shop exist.
    pub has_shop: bool,
    /// The products of the plan, if there is a plan.
    pub catalogue: Option<&'static Catalogue>,
}

impl Site {
    /// Returns the number of a product id, if a sale of the plan has such a product.
    pub fn product(self, text: &[u8]) -> Option<ProductId> {
        self.catalogue?.product_id(text)
    }
}

impl Default for Site {
    fn default() -> Self {
        Site { has_shop: true, catalogue: None }
    }
}

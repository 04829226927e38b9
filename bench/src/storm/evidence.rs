//! Collects the evidence after a run: reads the state of each sale from the server and, if a URL is given, the rows from the
//! database, and repeats a sample of the acknowledged purchases.

use crate::ledger::{LedgerEntry, PurchaseResponse};
use crate::options::StormOptions;
use crate::purchase_rows;
use crate::recorder::RunRecorder;
use crate::report::VerificationScope;
use crate::server_client::ServerClient;
use crate::verification::{Evidence, SaleEvidence, SaleSnapshot};
use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Time within which the counts of a sale must include every purchase that was acknowledged.
const SETTLING: Duration = Duration::from_secs(2);

/// Reads the state after the run from the server and, if a URL is given, from the database. Also repeats a sample of
/// the acknowledged purchases.
///
/// # Errors
/// Returns an error if the server or the database cannot be read, or does not know a sale of the run any more.
pub fn collect(
    options: &StormOptions,
    address: SocketAddr,
    before: SaleSnapshot,
    recorder: &RunRecorder,
) -> Result<(Evidence, VerificationScope), Box<dyn Error>> {
    let ledger = &recorder.ledger;
    let mut client = ServerClient::connect(address).map_err(|error| format!("the server is gone: {error}"))?;
    let bought: Vec<_> =
        ledger.reservations.iter().enumerate().filter(|(_, reservation)| reservation.is_bought()).collect();
    let has_keys = options.scenario.has_keys();
    let asked_again = repeat_purchases(&mut client, options, &bought)?;
    let outcomes = recorder.statistics.outcomes.iter().filter(|outcome| outcome.operation != "connect");
    let outcomes = outcomes.map(|outcome| (outcome.operation, outcome.name.clone(), outcome.count)).collect();
    let after = client.sale()?;
    let acknowledged: HashMap<u64, u64> =
        ledger.by_sale(after.sale_id).into_iter().map(|(sale, bought)| (sale, bought.len() as u64)).collect();
    let bought_in = |sale| acknowledged.get(&sale).copied().unwrap_or(0);
    let after = settled(before, bought_in, || client.sale())?;
    let mut sales = Vec::new();
    for sale in &recorder.calendar().sales {
        let id = sale.before.sale_id;
        let after = settled(sale.before, bought_in, || client.sale_with_id(id))?;
        let products_after = client.products(id)?.unwrap_or_default();
        sales.push(SaleEvidence { sale: sale.clone(), after, products_after });
    }
    let mut verified = VerificationScope { asked_again: asked_again.len(), ..VerificationScope::default() };
    let mut rows = None;
    if let Some(url) = &options.database_url {
        let sales: Vec<u64> = acknowledged.into_keys().collect();
        let codes: Vec<_> = bought.iter().map(|(_, reservation)| &reservation.code).collect();
        let patience = Duration::from_secs(options.patience);
        let (found, waited) = purchase_rows::fetch(url, &sales, &codes, patience)?;
        (verified.rows, verified.rows_waited_s) = (Some(found.len()), Some(waited.as_secs_f64()));
        rows = Some(found);
    }
    let evidence = Evidence {
        before,
        after,
        sales,
        others_buy: options.others_buy,
        buys_one_product: options.product.is_some(),
        has_keys,
        asked_again,
        rows,
        outcomes,
        served_before_opening: recorder.opening.as_ref().map_or(0, |opening| opening.served_before),
    };
    Ok((evidence, verified))
}

/// Repeats the purchase requests of a random sample of the acknowledged purchases.
fn repeat_purchases(
    client: &mut ServerClient,
    options: &StormOptions,
    bought: &[(usize, &LedgerEntry)],
) -> io::Result<Vec<(usize, PurchaseResponse)>> {
    let has_key = options.scenario.has_keys();
    let mut sample: Vec<_> = bought.iter().collect();
    fastrand::Rng::with_seed(options.seed).shuffle(&mut sample);
    sample.truncate(options.sample);
    sample.into_iter().map(|(place, reservation)| Ok((*place, client.purchase(reservation, has_key)?))).collect()
}

/// Returns the state of a sale, once it counts every purchase that was acknowledged. A shard publishes its counts
/// shortly after it responds, so a purchase may be missing from the first response.
fn settled(
    before: SaleSnapshot,
    bought_in: impl Fn(u64) -> u64,
    mut read: impl FnMut() -> io::Result<SaleSnapshot>,
) -> io::Result<SaleSnapshot> {
    let end = Instant::now() + SETTLING;
    loop {
        let sale = read()?;
        let counts_all = u64::from(sale.sold.saturating_sub(before.sold)) >= bought_in(sale.sale_id);
        if counts_all || sale.sale_id != before.sale_id || Instant::now() > end {
            return Ok(sale);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

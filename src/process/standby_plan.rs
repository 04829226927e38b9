//! The plan of a server that stands by: its file may change while the server waits.
//!
//! A signal that starts an upgrade of a server that sells makes a standby start anew, with the plan as it is now. A plan
//! that cannot be used is refused while the other server still sells: the standby keeps the plan that it has. If that one
//! contradicts the sales in the database when the standby is to take over, it reads the file again as well.

use crate::config::database_url::DatabaseUrl;
use crate::config::fatal::Fatal;
use crate::config::logging;
use crate::plan::planned_sale::LoadedPlan;
use crate::postgres::failure::Failure;
use crate::postgres::limits::in_time;
use crate::postgres::sale_rows::check_plan;
use crate::postgres::snapshot::Snapshot;
use crate::process::plan_files;
use crate::system::restart::{check_settings, restart};

/// Starts this standby anew with the plan as its file is now, after `signal`. Returns if that is refused, with a log line.
pub async fn reload(old: LoadedPlan, url: &DatabaseUrl, now_ms: u64, signal: &str) {
    match read(old, url, now_ms).await {
        Ok(plan) => {
            tracing::info!(signal, plan = plan.file, "the plan is read again: this standby starts anew");
            start_anew();
        }
        Err(why) => tracing::warn!(signal, %why, "the reload was refused: this standby keeps its plan"),
    }
}

/// Starts this standby anew if the file of its plan has changed and fits the database: the plan that it has does not,
/// because of `why`. Returns if that does not help.
pub async fn replace(old: LoadedPlan, url: &DatabaseUrl, now_ms: u64, why: &Fatal) {
    match read(old, url, now_ms).await {
        Ok(plan) => {
            tracing::warn!(%why, plan = plan.file, "the plan has changed since it was read: this standby starts anew");
            start_anew();
        }
        Err(other) => tracing::warn!(why = %other, "the plan is not read again"),
    }
}

/// Reads the plan again, and checks everything that a start checks.
async fn read(old: LoadedPlan, url: &DatabaseUrl, now_ms: u64) -> Result<LoadedPlan, Failure> {
    check_settings().map_err(|why| Failure::Final(Fatal::Settings(why)))?;
    let plan = plan_files::load(old.file)?;
    in_time(url.patience(), async { check_plan(&Snapshot::take(url).await?, plan, now_ms).await }).await?;
    Ok(plan)
}

fn start_anew() -> ! {
    logging::flush();
    let error = restart();
    Fatal::Host(format!("cannot start anew: {error}")).exit()
}

//! Rollbacks: what is asked for, what would be done, and what became of it.

mod duplicates;
mod plan;
mod precondition;
mod predict;
mod record;
mod remains;
mod warning;

pub use duplicates::{Duplicates, relabelled};
pub use plan::{Decision, Mode, Plan, Power, Refusal, RollbackRequest, Standing, Target, plan};
pub use precondition::{Precondition, Version};
pub use record::{Origin, RevisionInfo, Rollback, RollbackState};
pub use warning::{Bookkeeping, OnWarning, Severity, Warning, WarningCode};

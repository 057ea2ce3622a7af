//! Rollbacks: what is asked for, what would be done, and what became of it.

mod plan;
mod record;

pub use plan::{
    Decision, Mode, OnWarning, Plan, Refusal, RollbackRequest, Target, Warning, WarningCode, plan,
};
pub use record::{Origin, RevisionInfo, Rollback, RollbackState};

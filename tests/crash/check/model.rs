//! What may follow what: the tables of `MODEL.md`.

/// What may follow an action in the audit of one rollback, and whether it may be the last. The empty text is
/// the beginning.
pub fn may_follow(action: &str) -> (&'static [&'static str], bool) {
    match action {
        "" => (&["rollback.requested", "rollback.skipped"], false),
        "rollback.requested" => (
            &[
                "rollback.unsettled",
                "rollback.applied",
                "rollback.skipped",
                "rollback.failed",
                "rollout.deleted",
            ],
            false,
        ),
        "rollback.unsettled" => {
            (&["rollback.applied", "rollback.skipped", "rollback.failed", "rollout.deleted"], false)
        }
        // The last one with updateStrategy OnDelete.
        "rollback.applied" => {
            (&["rollout.completed", "rollout.stalled", "rollout.superseded", "rollout.deleted"], true)
        }
        "rollout.stalled" => {
            (&["rollout.resumed", "rollout.completed", "rollout.superseded", "rollout.deleted"], false)
        }
        "rollout.resumed" => {
            (&["rollout.stalled", "rollout.completed", "rollout.superseded", "rollout.deleted"], false)
        }
        _ => (&[], true),
    }
}

/// The states in which an action leaves a rollback.
pub fn states_after(action: &str) -> &'static [&'static str] {
    match action {
        "rollback.requested" => &["requested"],
        "rollback.unsettled" => &["unsettled"],
        "rollback.applied" => &["progressing", "applied"],
        "rollback.skipped" => &["skipped"],
        "rollback.failed" => &["failed", "abandoned", "unknown"],
        "rollout.completed" => &["succeeded"],
        "rollout.stalled" => &["stalled"],
        "rollout.resumed" => &["progressing"],
        "rollout.superseded" => &["superseded"],
        "rollout.deleted" => &["deleted"],
        _ => &[],
    }
}

pub fn is_undecided(action: &str) -> bool {
    matches!(action, "rollback.requested" | "rollback.unsettled")
}

pub fn is_open(state: &str) -> bool {
    matches!(state, "requested" | "unsettled" | "progressing" | "stalled")
}

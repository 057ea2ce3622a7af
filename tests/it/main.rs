//! Integration tests, on a real control plane (`tests/controlplane`), against the real kubectl.
//!
//! One control plane for the whole run, a namespace for each test, tests in parallel. A test that
//! freezes or kills a part of the control plane gets one of its own.
#![expect(clippy::unwrap_used, reason = "what is missing in a test fails it")]

#[expect(dead_code, reason = "the faults of a watch have no test yet")]
mod support;

mod admission;
mod architecture;
mod bodies;
mod daemonsets;
mod deploy;
mod dry_run;
mod errors;
mod followed;
mod guards;
mod history;
mod hostile;
mod hostile_data;
mod installed;
mod lagging;
mod lost_answers;
mod openapi;
mod operations;
mod pages;
mod races;
mod readme;
mod reads;
mod revision_text;
mod status;
mod store_trouble;
mod stream;
mod task_page;
mod undo;
mod undo_better;
mod undo_states;

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
mod dry_run;
mod errors;
mod followed;
mod front;
mod guards;
mod history;
mod hostile;
mod hostile_data;
mod lagging;
mod lost_answers;
mod matrix;
mod open_streams;
mod openapi;
mod operations;
mod own_account;
mod pages;
mod planted;
mod races;
mod readme;
mod reads;
mod revision_text;
mod rights;
mod status;
mod store_trouble;
mod stream;
mod task_page;
mod undo;
mod undo_better;
mod undo_states;
mod who;

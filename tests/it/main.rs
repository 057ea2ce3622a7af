//! Integration tests: in the sandbox, or, with `ROLLBACKD_TEST_KUBERNETES=v1.37`, on a real control plane
//! (`tests/controlplane`) against the real kubectl. A test that needs the real one is ignored otherwise,
//! and says why.
//!
//! One control plane for the whole run, a namespace for each test, tests in parallel. A test that
//! freezes or kills a part of the control plane gets one of its own.
//!
//! The same with PostgreSQL, whose server `ROLLBACKD_TEST_POSTGRES` names: a database for each test. With
//! `ROLLBACKD_TEST_STORE=postgres` each rollbackd keeps its record there.
#![expect(clippy::unwrap_used, reason = "what is missing in a test fails it")]

mod support;

mod admission;
mod altered;
mod architecture;
mod audit_log;
mod audit_size;
mod bodies;
mod chain;
mod cluster;
mod connections;
mod daemonsets;
mod deploy;
mod disk_faults;
mod dry_run;
mod duplicates;
mod errors;
mod events;
mod followed;
mod front;
mod guards;
mod history;
mod hostile;
mod hostile_data;
mod idempotency;
mod installed;
mod lagging;
mod logging;
mod lost_answers;
mod matrix;
mod memory;
mod next_apply;
mod next_apply_cases;
mod next_apply_faults;
mod open_streams;
mod openapi;
mod operations;
mod own_account;
mod ownership_return;
mod pages;
mod planted;
mod postgres_trouble;
mod preconditions;
mod preferences;
mod progress;
mod races;
mod read_only;
mod readme;
mod reads;
mod replicas;
mod review_shares;
mod revision_text;
mod rights;
mod sandbox;
mod settling;
mod status;
mod stopping;
mod store;
mod store_trouble;
mod stream;
mod stream_limits;
mod stream_trouble;
mod takeover;
mod task_page;
mod undo;
mod undo_better;
mod undo_states;
mod unrecorded;
mod who;

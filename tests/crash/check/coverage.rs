//! Whether what was to be tried was tried.

use std::collections::HashSet;

use super::{Facts, history::text};

impl Facts<'_> {
    /// rollbackd was killed at each point.
    pub fn coverage(&mut self) {
        let harness = &self.history.harness;
        let kinds: HashSet<&str> = harness["faultKinds"].as_array().into_iter().flatten().map(text).collect();
        for kind in kinds {
            if harness["faults"][kind].is_null() {
                self.findings.push(format!("no {kind}: that tests nothing there"));
            }
        }
        let too_new = &harness["tooNew"];
        let said = too_new["said"].as_array().map_or(&[][..], Vec::as_slice);
        let refused = matches!(said, [line] if text(line).contains("a newer rollbackd"));
        if !(too_new.is_null() || too_new["code"] == 1 && refused) {
            self.findings
                .push(format!("on a store that is too new for it, it did not stop with one line: {too_new}"));
        }
        if harness["rounds"].as_u64().unwrap_or_default() == 0 {
            return;
        }
        let points: HashSet<&str> = harness["points"].as_array().into_iter().flatten().map(text).collect();
        for point in points {
            if harness["kills"][point].is_null() {
                self.findings.push(format!("it never died at {point}: that tests nothing there"));
            }
        }
    }
}

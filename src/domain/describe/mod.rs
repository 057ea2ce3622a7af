//! A pod template as kubectl shows it.
//!
//! `kubectl rollout history --revision=N` prints a template with `DescribePodTemplate`
//! (k8s.io/kubectl, pkg/describe/describe.go); the layout here is that of v0.37.2, quirks
//! included, checked byte for byte against it. kubectl leaves most of a pod template out
//! (affinity, security contexts but for seccomp, lifecycle, host namespaces, …), so two different
//! templates can print alike: this text is for reading, never for comparing.
//!
//! Departures from kubectl, all where its own output would mislead or end in a panic:
//! - text from the cluster passes [`escape`]; kubectl replaces only ESC and CR, so a newline in a
//!   probe's command or in an image name adds a line there;
//! - in a mount's quoted sub-path only quotes, backslashes and what [`escape`] knows are escaped,
//!   where Go's `%q` also spells out rarer unprintable characters;
//! - a text cut to length is cut between characters, not inside one;
//! - a missing field that kubectl dereferences blindly (a gRPC probe's `service`, say) is empty or 0;
//! - more than 12 tolerations or topology spread constraints with equal keys keep their order,
//!   where Go's unstable sort may swap them.
//!
//! Deliberately absent: column alignment (kubectl has none on this path, the tabs stay tabs) and
//! any decision about the template.

mod container;
mod fields;
mod placement;
mod quantity;
mod volume;

#[cfg(test)]
mod tests;

use std::fmt::Display;

use serde_json::Value;

use crate::domain::text::escape;
use fields::Fields;

/// Set by `kubectl apply`; `skipAnnotations` in describe.go.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Bytes of an annotation or CSI attribute shown on one line; `maxAnnotationLen` in describe.go.
const LONGEST_ANNOTATION: usize = 140;

/// What `kubectl rollout history daemonset/NAME --revision=N` prints below its header line: the
/// text of `printTemplate` (pkg/polymorphichelpers/history.go), from the line `Pod Template:` on,
/// and the empty line that comes of `NamePrinter` ending it once more.
///
/// `template` is a `PodTemplateSpec` in JSON as the API server stores it. As in Go's decoded
/// object, an absent field, a `null` and the zero value are the same; a value of the wrong type,
/// which kubectl would refuse, counts as absent.
#[must_use]
pub fn pod_template(template: &Value) -> String {
    let template = Fields::of(template);
    let metadata = template.part("metadata");
    let spec = template.part("spec");
    let mut page = Page::default();

    page.line(0, "Pod Template:");
    labels(&mut page, "  Labels", &metadata.raw_pairs("labels"));
    let annotated = metadata.raw_pairs("annotations");
    if !annotated.is_empty() {
        annotations(&mut page, "  Annotations", &annotated);
    }
    let account = spec.text("serviceAccountName");
    if !account.is_empty() {
        page.line(1, format_args!("Service Account:\t{account}"));
    }
    let init_containers = spec.list("initContainers");
    if !init_containers.is_empty() {
        container::describe(&mut page, "Init Containers", &init_containers);
    }
    container::describe(&mut page, "Containers", &spec.list("containers"));
    volume::describe(&mut page, &spec.list("volumes"));
    placement::topology_spread(&mut page, spec.list("topologySpreadConstraints"));
    let priority = spec.text("priorityClassName");
    if !priority.is_empty() {
        page.line(1, format_args!("Priority Class Name:\t{priority}"));
    }
    labels(&mut page, "  Node-Selectors", &spec.raw_pairs("nodeSelector"));
    placement::tolerations(&mut page, spec.list("tolerations"));
    if let Some(group) = spec.object("schedulingGroup") {
        page.line(0, "  SchedulingGroup:");
        let name = group.text("podGroupName");
        page.line(1, format_args!("PodGroupName:\t{name}"));
    }
    page.line(0, "");
    page.text
}

/// The text being written; kubectl's `PrefixWriter`.
#[derive(Default)]
struct Page {
    text: String,
    /// Levels put before every piece, also before one in the middle of a line: that is how
    /// kubectl's `nestedPrefixWriter` comes to print stray spaces after a tab.
    nesting: usize,
}

impl Page {
    /// Writes a piece of a line, two spaces per level before it.
    fn put(&mut self, level: usize, piece: impl Display) {
        self.text.push_str(&"  ".repeat(self.nesting + level));
        self.text.push_str(&piece.to_string());
    }

    fn line(&mut self, level: usize, text: impl Display) {
        self.put(level, text);
        self.text.push('\n');
    }
}

/// `printLabelsMultiline`: one `key=value` a line.
fn labels(page: &mut Page, title: &str, labels: &[(&str, &str)]) {
    page.put(0, format_args!("{title}:\t"));
    if labels.is_empty() {
        page.line(0, "<none>");
    }
    for (index, (key, value)) in labels.iter().enumerate() {
        if index > 0 {
            // Two pieces, as in kubectl: nested in a claim template each brings its spaces along.
            page.put(0, "");
            page.put(0, "\t");
        }
        page.line(0, format_args!("{}={}", escape(key), escape(value)));
    }
}

/// `printAnnotationsMultiline`: `key: value`, or the value's lines below the key if it is long or
/// has several.
fn annotations(page: &mut Page, title: &str, annotations: &[(&str, &str)]) {
    page.put(0, format_args!("{title}:\t"));
    let mut shown = annotations.iter().filter(|(key, _)| *key != LAST_APPLIED).peekable();
    if shown.peek().is_none() {
        page.line(0, "<none>");
    }
    for (index, (key, value)) in shown.enumerate() {
        if index > 0 {
            page.put(0, "\t");
        }
        let value = value.strip_suffix('\n').unwrap_or(value);
        if key.len() + value.len() + 2 > LONGEST_ANNOTATION || value.contains('\n') {
            page.line(0, format_args!("{}:", escape(key)));
            for line in value.split('\n') {
                let line = shorten(line, LONGEST_ANNOTATION - 2);
                page.line(0, format_args!("\t  {line}"));
            }
        } else {
            page.line(0, format_args!("{}: {}", escape(key), escape(value)));
        }
    }
}

/// Escaped text of at most `longest` bytes, `...` in place of the rest.
fn shorten(text: &str, longest: usize) -> String {
    let kept = &text[..text.floor_char_boundary(longest)];
    let ellipsis = if kept.len() < text.len() { "..." } else { "" };
    format!("{}{ellipsis}", escape(kept))
}

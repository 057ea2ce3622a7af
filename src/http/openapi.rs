//! The OpenAPI document. Routes, parameters and answers come from the handlers' own attributes; this
//! adds what belongs to all of them.

use utoipa::{
    OpenApi, PartialSchema, ToSchema,
    openapi::{
        Content, OpenApi as Spec, Ref, RefOr, ResponseBuilder,
        schema::{ObjectBuilder, Schema},
    },
};

use super::{problem, router};

/// What belongs to all routes.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "rollbackd",
        description = "A safe HTTP API for DaemonSets: list revisions, look into one, roll back, watch the rollout, and read who did what and why.\n\nErrors are [problem details](https://www.rfc-editor.org/rfc/rfc9457) (`application/problem+json`); `Accept: text/plain` gets kubectl's own output, and errors as one line. Links are relative to the server's root.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    servers((url = "/", description = "This server")),
    tags(
        (name = "daemonsets", description = "DaemonSets at a glance"),
        (name = "revisions", description = "What `kubectl rollout history` shows"),
        (name = "rollbacks", description = "What `kubectl rollout undo` does, and its record"),
        (name = "status", description = "What `kubectl rollout status` shows"),
        (name = "audit", description = "Who did what, and why"),
        (name = "operations", description = "Version, probes and metrics"),
    ),
    // --auth none.
    security(()),
)]
pub struct Document;

/// The `type` of a problem: all kinds with their statuses.
pub struct ProblemType;

impl PartialSchema for ProblemType {
    fn schema() -> RefOr<Schema> {
        let kinds: Vec<String> = problem::Kind::ALL
            .iter()
            .map(|kind| {
                let (_, status, title) = kind.about();
                format!("- `{}` ({}): {title}", kind.uri(), status.as_u16())
            })
            .collect();
        ObjectBuilder::new()
            .schema_type(utoipa::openapi::Type::String)
            .description(Some(format!("Kinds of problems:\n\n{}", kinds.join("\n"))))
            .enum_values(Some(problem::Kind::ALL.iter().map(|kind| kind.uri())))
            .build()
            .into()
    }
}

impl ToSchema for ProblemType {}

/// Says of each operation that rollbackd may fail.
pub fn add_failures(spec: &mut Spec) {
    let problem = Content::new(Some(Ref::from_schema_name("Problem")));
    let failed = ResponseBuilder::new()
        .description("rollbackd failed; its log has more under the request id")
        .content("application/problem+json", problem)
        .build();
    for item in spec.paths.paths.values_mut() {
        for operation in [&mut item.get, &mut item.post].into_iter().flatten() {
            operation.responses.responses.insert("500".to_owned(), failed.clone().into());
        }
    }
}

/// The whole document as indented JSON with a newline at the end.
#[must_use]
pub fn document() -> String {
    let document = router::api().into_openapi();
    document.to_pretty_json().expect("a document has string keys") + "\n"
}

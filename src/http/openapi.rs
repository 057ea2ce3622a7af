//! The OpenAPI document. Routes, parameters and answers come from the handlers' own attributes; this
//! adds what belongs to all of them.

use utoipa::{
    OpenApi, PartialSchema, ToSchema,
    openapi::{
        Content, OpenApi as Spec, PathItem, Ref, RefOr, Response, ResponseBuilder,
        path::Operation,
        schema::{ObjectBuilder, Schema},
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};

use super::{problem, router};

/// What belongs to all routes.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "rollbackd",
        description = "A safe HTTP API for DaemonSets: list revisions, look into one, roll back, watch the rollout, and read who did what and why.\n\nErrors are [problem details](https://www.rfc-editor.org/rfc/rfc9457) (`application/problem+json`); `Accept: text/plain` gets kubectl's own output, and errors as one line. Links are relative to the server's root.\n\nWho may do what is for the cluster's RBAC to say: the bearer token is reviewed, and each request asks for the right that its operation names. Where rollbackd runs with `--auth none`, no token is needed or looked at.",
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
    // Of parameters alone nothing is collected.
    components(schemas(super::handlers::daemonsets::Include)),
    security(("token" = [])),
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

/// What every operation has: it may fail, and most need a token and a right.
pub fn complete(spec: &mut Spec) {
    let token = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some(
            "A token that the cluster's authentication knows, made for rollbackd's own audience: `kubectl create token NAME --audience rollbackd`",
        ))
        .build();
    let components = spec.components.get_or_insert_default();
    components.add_security_scheme("token", SecurityScheme::Http(token));
    for operation in spec.paths.paths.values_mut().flat_map(operations) {
        add(operation, "500", "rollbackd failed; its log has more under the request id");
        let open = operation.security.is_some();
        if !open {
            add(operation, "401", "There is no bearer token, or none that is valid here");
            add(
                operation,
                "403",
                "The cluster's RBAC does not allow it, in Kubernetes' words, whether or not there is such an object",
            );
            add(operation, "429", "The share of reviews of the user, or of the client's address, is used up");
            impersonation(operation);
        }
        plain_errors(operation);
    }
}

/// Each problem can be had as one plain line.
fn plain_errors(operation: &mut Operation) {
    for response in operation.responses.responses.values_mut() {
        let RefOr::T(response) = response else { continue };
        if response.content.contains_key("application/problem+json") {
            let text = ObjectBuilder::new().schema_type(utoipa::openapi::Type::String).build();
            response
                .content
                .entry("text/plain".to_owned())
                .or_insert_with(|| Content::new(Some(text)).into());
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.post].into_iter().flatten()
}

/// Adds an answer that is a problem, unless the operation tells more of it.
fn add(operation: &mut Operation, status: &str, description: &str) {
    let challenge = utoipa::openapi::HeaderBuilder::new()
        .description(Some("`Bearer`, and what is wrong with the token"))
        .build();
    let mut problem: Response = ResponseBuilder::new()
        .description(description)
        .content("application/problem+json", Content::new(Some(Ref::from_schema_name("Problem"))))
        .build();
    if status == "401" {
        problem.headers.insert("WWW-Authenticate".to_owned(), challenge.into());
    }
    operation.responses.responses.entry(status.to_owned()).or_insert_with(|| problem.into());
}

/// Headers that every operation with a token takes.
fn impersonation(operation: &mut Operation) {
    use utoipa::openapi::path::{ParameterBuilder, ParameterIn};
    let text = || ObjectBuilder::new().schema_type(utoipa::openapi::Type::String).build();
    let header = |name: &str, description: &str, schema: RefOr<Schema>| {
        let parameter = ParameterBuilder::new().name(name).parameter_in(ParameterIn::Header);
        RefOr::T(parameter.description(Some(description)).schema(Some(schema)).build())
    };
    let parameters = operation.parameters.get_or_insert_default();
    parameters.push(header(
        "Impersonate-User",
        "For whom the token's owner acts, who needs the right `impersonate` on `users` of `rollbackd.dev` by name, or Kubernetes' own; that user's rights decide then",
        text().into(),
    ));
    parameters.push(header(
        "Impersonate-Group",
        "A group of that user; may be sent several times",
        text().into(),
    ));
}

/// The whole document as indented JSON with a newline at the end.
#[must_use]
pub fn document() -> String {
    let document = router::api().into_openapi();
    document.to_pretty_json().expect("a document has string keys") + "\n"
}

//! All routes.

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    middleware::{self, Next},
    response::IntoResponse,
};
use http::{Method, StatusCode, Uri};
use tower::util::option_layer;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi as _;
use utoipa_axum::{router::OpenApiRouter, routes};
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::{
    App, MAX_BODY, Open, cors, edge, guard, handlers,
    openapi::{self, Document},
    problem::{Kind, Problem},
};
use crate::{auth::Authority, domain::text::cut};

/// The API's routes with the document that describes them.
pub fn api() -> OpenApiRouter<App> {
    use handlers::{audit, daemonsets, operations, revisions, rollback, rollbacks, status};
    let mut api = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(daemonsets::list_daemon_sets))
        .routes(routes!(daemonsets::list_namespaced_daemon_sets))
        .routes(routes!(daemonsets::get_daemon_set))
        .routes(routes!(revisions::list_revisions))
        .routes(routes!(revisions::get_revision))
        .routes(routes!(rollback::roll_back))
        .routes(routes!(status::get_rollout_status))
        .routes(routes!(rollbacks::list_rollbacks))
        .routes(routes!(rollbacks::get_rollback))
        .routes(routes!(audit::list_audit_entries))
        .routes(routes!(audit::get_audit_head))
        .routes(routes!(operations::get_version))
        .routes(routes!(operations::get_liveness))
        .routes(routes!(operations::get_readiness))
        .routes(routes!(operations::get_metrics));
    openapi::complete(api.get_openapi_mut());
    api
}

/// The whole server as one service.
pub fn router(app: App) -> Router {
    let (routes, document) = api().split_for_parts();
    let guards = match app.authority {
        Authority::None => Some(middleware::from_fn(guard::loopback_only)),
        Authority::Kubernetes(_) | Authority::Sandbox => None,
    };
    let cors = (!app.cors_origins.is_empty()).then(|| cors::layer(&app.cors_origins));
    routes
        .merge(docs(document, &app))
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(unknown_path)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(app.clone())
        .layer(CatchPanicLayer::custom(edge::panicked))
        .layer(middleware::from_fn_with_state(app.clone(), guard::supported_headers))
        .layer(option_layer(guards))
        .layer(middleware::from_fn(guard::well_formed))
        .layer(option_layer(cors))
        .layer(middleware::from_fn_with_state(app, edge::edge))
}

/// The document and its browser, which loads nothing from anywhere else.
fn docs(document: utoipa::openapi::OpenApi, app: &App) -> Router<App> {
    // Relative, so that it survives a proxy's prefix; the validator's badge would come from its makers.
    let config = Config::new(["../openapi.json"]).validator_url("none");
    let docs = Router::from(SwaggerUi::new("/docs").url("/openapi.json", document).config(config));
    let docs = docs.layer(middleware::from_fn(async |request: Request, next: Next| {
        let uri = request.uri().clone();
        match next.run(request).await {
            answer if answer.status() == StatusCode::NOT_FOUND => unknown_path(uri).await.into_response(),
            answer => answer,
        }
    }));
    if app.open.contains(&Open::Docs) {
        return docs;
    }
    docs.layer(middleware::from_fn_with_state(app.clone(), guard::known_callers))
}

async fn unknown_path(uri: Uri) -> Problem {
    Problem::new(Kind::UnknownPath, format!("there is nothing at {}", cut(uri.path(), edge::LONGEST_PATH)))
}

async fn method_not_allowed(method: Method, uri: Uri) -> Problem {
    let (path, method) = (cut(uri.path(), edge::LONGEST_PATH), cut(method.as_str(), edge::LONGEST_METHOD));
    Problem::new(Kind::MethodNotAllowed, format!("{path} does not know {method}"))
}

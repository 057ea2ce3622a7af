//! An API server with more in it than a real one is filled with in a test: DaemonSets without pods, each with its
//! revisions. It makes each object when it is sent and holds none, and knows what rollbackd asks to read.

use std::{convert::Infallible, path::PathBuf, time::Duration};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, RawQuery, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::{Stream, StreamExt, stream};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// How lists are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lists {
    /// As events of a watch, as from Kubernetes 1.34 on.
    Streamed,
    /// Each as one page, whatever limit is asked for.
    OnePage,
}

/// What is in the cluster.
#[derive(Clone, Copy, Debug)]
pub struct LargeCluster {
    pub daemonsets: usize,
    pub revisions: usize,
    /// Bytes of each pod template, about.
    pub template: usize,
    pub lists: Lists,
}

/// All that lists say of their version.
const VERSION: &str = "1000000";

impl LargeCluster {
    /// Serves it as long as the test lives; returns a kubeconfig.
    pub async fn serve(self, folder: &std::path::Path) -> PathBuf {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let apps = "/apis/apps/v1";
        let router = Router::new()
            .route(
                "/version",
                get(async || Json(json!({"major": "1", "minor": "37", "gitVersion": "v1.37.0"}))),
            )
            .route(&format!("{apps}/{{plural}}"), get(collection))
            .route(&format!("{apps}/namespaces/{{namespace}}/{{plural}}"), get(named))
            .with_state(self);
        tokio::spawn(async move { axum::serve(listener, router).await });
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "large",
            "clusters": [{"name": "large", "cluster": {"server": format!("http://{address}")}}],
            "users": [{"name": "large", "user": {}}],
            "contexts": [{"name": "large", "context": {"cluster": "large", "user": "large"}}],
        });
        let file = folder.join("large.kubeconfig");
        std::fs::write(&file, config.to_string()).expect("the folder can be written");
        file
    }

    /// The pod template of a revision: much like that of the others of its DaemonSet, and not like that of another.
    pub fn template(self, daemonset: usize, revision: usize) -> Value {
        let mut random = fastrand::Rng::with_seed(daemonset as u64);
        let settings = (0..self.template / 64).map(|number| {
            let value: String = std::iter::repeat_with(|| random.alphanumeric()).take(24).collect();
            json!({"name": format!("SETTING_{number:06}"), "value": value})
        });
        let container = json!({
            "name": "agent", "image": format!("registry.example/agent-{daemonset}:1.{revision}"),
            "env": settings.collect::<Vec<_>>(),
        });
        let labels = json!({"app": format!("agent-{daemonset:05}")});
        json!({"metadata": {"labels": labels}, "spec": {"containers": [container]}})
    }

    fn daemonset(self, number: usize) -> Value {
        let (name, revisions) = (format!("agent-{number:05}"), self.revisions);
        let template = self.template(number, revisions);
        let applied = json!({"spec": {"template": template}}).to_string();
        json!({
            "kind": "DaemonSet", "apiVersion": "apps/v1",
            "metadata": {
                "name": name, "namespace": namespace(number), "uid": format!("00000000-0000-4000-8000-{number:012}"),
                "resourceVersion": "1", "generation": revisions, "labels": {"app": name},
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": applied},
                "managedFields": [{"manager": "kubectl", "operation": "Update", "time": "2026-11-29T00:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:template": {}}}}],
            },
            "spec": {"selector": {"matchLabels": {"app": name}}, "template": template, "updateStrategy": {"type": "RollingUpdate"}},
            "status": {"observedGeneration": revisions},
        })
    }

    fn revision(self, number: usize, revision: usize) -> Value {
        let name = format!("agent-{number:05}");
        let mut template = self.template(number, revision);
        template["$patch"] = json!("replace");
        json!({
            "kind": "ControllerRevision", "apiVersion": "apps/v1",
            "metadata": {
                "name": format!("{name}-{revision:03}"), "namespace": namespace(number),
                "uid": format!("00000000-0000-4000-9{revision:03}-{number:012}"), "resourceVersion": "1",
                "labels": {"app": name, "controller-revision-hash": format!("{revision:03}")},
                "annotations": {"kubernetes.io/change-cause": format!("release 1.{revision}")},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": name, "uid": format!("00000000-0000-4000-8000-{number:012}"), "controller": true, "blockOwnerDeletion": true}],
            },
            "data": {"spec": {"template": template}},
            "revision": revision,
        })
    }

    fn objects(self, plural: &str) -> Box<dyn Iterator<Item = Value> + Send> {
        let numbers = 0..self.daemonsets;
        match plural {
            "daemonsets" => Box::new(numbers.map(move |number| self.daemonset(number))),
            _ => Box::new(
                numbers.flat_map(move |number| (1..=self.revisions).map(move |it| self.revision(number, it))),
            ),
        }
    }
}

/// A hundred DaemonSets are in each.
fn namespace(number: usize) -> String {
    format!("tenant-{}", number / 100)
}

async fn collection(
    State(cluster): State<LargeCluster>,
    Path(plural): Path<String>,
    RawQuery(query): RawQuery,
) -> Response {
    let query = query.unwrap_or_default();
    if query.contains("sendInitialEvents=true") {
        if cluster.lists == Lists::OnePage {
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Invalid", "message": "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled", "code": 422});
            return (StatusCode::UNPROCESSABLE_ENTITY, Json(status)).into_response();
        }
        let line = |kind: &str, object: &Value| {
            Bytes::from(format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n"))
        };
        let mark = json!({"kind": "Bookmark", "apiVersion": "apps/v1", "metadata": {"resourceVersion": VERSION, "annotations": {"k8s.io/initial-events-end": "true"}}});
        let end = line("BOOKMARK", &mark);
        let objects = cluster.objects(&plural).map(move |object| line("ADDED", &object));
        return streamed(stream::iter(objects.chain([end])).chain(silence()));
    }
    if query.contains("watch=true") {
        return streamed(silence());
    }
    if query.contains("limit=1&") || query.ends_with("limit=1") {
        return Json(json!({"metadata": {"resourceVersion": VERSION}, "items": []})).into_response();
    }
    let head = format!(
        "{{\"kind\":\"List\",\"apiVersion\":\"apps/v1\",\"metadata\":{{\"resourceVersion\":\"{VERSION}\"}},\"items\":["
    );
    let items = cluster.objects(&plural).enumerate().map(|(index, object)| {
        let comma = if index == 0 { "" } else { "," };
        Bytes::from(format!("{comma}{object}"))
    });
    streamed(stream::iter([Bytes::from(head)].into_iter().chain(items).chain([Bytes::from_static(b"]}")])))
}

/// What is asked for by name.
async fn named(
    State(cluster): State<LargeCluster>,
    Path((_, plural)): Path<(String, String)>,
    RawQuery(query): RawQuery,
) -> Response {
    let query = query.unwrap_or_default();
    let name =
        query.split_once("metadata.name%3D").map(|(_, rest)| rest.split('&').next().unwrap_or_default());
    let selected = name.and_then(|name| {
        let mut parts = name.strip_prefix("agent-")?.split('-').map(str::parse::<usize>);
        Some((parts.next()?.ok()?, parts.next()?.ok()?))
    });
    assert_eq!(plural, "controllerrevisions");
    let items = selected.map(|(number, revision)| cluster.revision(number, revision));
    let items: Vec<Value> = items.into_iter().collect();
    Json(json!({"metadata": {"resourceVersion": VERSION}, "items": items})).into_response()
}

fn streamed(pieces: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    Body::from_stream(pieces.map(Ok::<_, Infallible>)).into_response()
}

/// A bookmark now and then.
fn silence() -> impl Stream<Item = Bytes> {
    stream::unfold((), async |()| {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let mark = json!({"type": "BOOKMARK", "object": {"kind": "Bookmark", "apiVersion": "apps/v1", "metadata": {"resourceVersion": VERSION}}});
        // kube reads what follows by the type, which has to come first.
        let line = format!("{{\"type\":\"BOOKMARK\",\"object\":{}}}\n", mark["object"]);
        Some((Bytes::from(line), ()))
    })
}

//! Requests made when they are needed: fresh reads, the patch, the probe.

use std::{sync::Arc, time::Duration};

use http::Method;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams, PostParams, WatchParams},
    core::Request as ApiRequest,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    ClusterError, Delivery, Grant, list,
    liveness::Liveness,
    objects::{FreshDaemonSet, FreshRevision, ObservedDaemonSet, ObservedRevision},
    selector::LabelSelector,
    transport::{Transport, Warnings},
    watch::{KnownHistory, KnownRevision},
};
use crate::domain::{
    bookkeeping::ManagedFields,
    daemonset::{DaemonSet, FIELD_MANAGER, LAST_APPLIED, ROLLBACK},
    key::Key,
    revision::{History, Revision},
    revision_data::DataDigest,
    template::{Template, TemplateSummary},
};

/// Annotation that settling a lost patch may leave on a DaemonSet.
const SETTLED: &str = "rollbackd.dev/settled";
/// The API server has forgotten a version.
const GONE: u16 = 410;
/// Revisions on a page of a list.
const PAGE: u32 = 100;
/// Bytes of the summaries of all revisions of one DaemonSet, beyond which they are not read. Ten take about 7 KiB.
const LARGEST_KNOWN_HISTORY: usize = 8 * 1024 * 1024;
/// Bytes of the templates of all revisions of one DaemonSet, of which any number of rollbacks may hold as many at a
/// time.
const SMALL_HISTORY: usize = 1024 * 1024;
/// The same, of which [`LARGE_HISTORIES`] may, and beyond which no rollback is made.
const LARGEST_HISTORY: usize = 24 * 1024 * 1024;
const LARGE_HISTORIES: usize = 2;
/// For others to be done with theirs.
const ROOM: Duration = Duration::from_secs(10);

/// Direct access to the API server. Each call has a deadline and is sent once.
#[derive(Clone)]
pub struct Live {
    client: kube::Client,
    large_histories: Arc<Semaphore>,
}

/// The revisions of a DaemonSet with the whole of their templates, read for a rollback.
#[derive(Debug)]
pub struct FreshHistory {
    pub history: History,
    /// While it is held, so many others wait.
    _room: Option<OwnedSemaphorePermit>,
}

/// What a rollback writes: the template, and the id that proves it.
#[derive(Clone, Copy, Debug)]
pub struct Restore<'a> {
    pub daemonset: &'a DaemonSet,
    pub template: &'a Template,
    /// The last-applied annotation to write, if it changes.
    pub last_applied: Option<&'a str>,
    pub rollback: uuid::Uuid,
}

/// What the first write after a version of a DaemonSet made of it.
#[derive(Clone, Debug)]
pub enum Next {
    Version(Arc<DaemonSet>),
    /// The API server does not know any more: it keeps the changes of some minutes, and none across its restart.
    Forgotten,
}

/// A DaemonSet of which only the template is read, as it is stored.
#[derive(serde::Deserialize)]
struct Stored {
    spec: StoredSpec,
}

#[derive(serde::Deserialize)]
struct StoredSpec {
    template: Value,
}

/// One event of a watch.
#[derive(serde::Deserialize)]
struct Event {
    r#type: String,
    object: Value,
}

impl Live {
    /// Takes a client and gives every request on it a deadline; the watches use the same client
    /// ([`Live::client`]).
    #[must_use]
    pub fn new(client: kube::Client, liveness: Arc<Liveness>, deadline: Duration) -> Self {
        let large_histories = Arc::new(Semaphore::new(LARGE_HISTORIES));
        Self { client: Transport::around(client, liveness, deadline), large_histories }
    }

    /// The client with the deadline.
    #[must_use]
    pub fn client(&self) -> &kube::Client {
        &self.client
    }

    fn daemonsets(&self, key: &Key) -> Api<ObservedDaemonSet> {
        Api::namespaced(self.client.clone(), key.namespace.as_str())
    }

    /// Reads one DaemonSet.
    ///
    /// # Errors
    /// [`ClusterError::NotFound`] and the rest.
    pub async fn daemonset(&self, key: &Key) -> Result<Arc<DaemonSet>, ClusterError> {
        Ok(self.daemonsets(key).get(key.name.as_str()).await?.daemonset)
    }

    /// Reads one DaemonSet to write it, with its bookkeeping.
    ///
    /// # Errors
    /// [`ClusterError::NotFound`] and the rest.
    pub async fn fresh(&self, key: &Key) -> Result<FreshDaemonSet, ClusterError> {
        let api: Api<FreshDaemonSet> = Api::namespaced(self.client.clone(), key.namespace.as_str());
        Ok(api.get(key.name.as_str()).await?)
    }

    /// Reads the revisions of a DaemonSet, as `kubectl rollout history` does, to roll back to one of them.
    ///
    /// # Errors
    /// [`ClusterError::TooLarge`], and what kept the API server from answering.
    pub async fn history(&self, daemonset: &DaemonSet) -> Result<FreshHistory, ClusterError> {
        match self.read_history(daemonset, SMALL_HISTORY, SMALL_HISTORY).await {
            Err(ClusterError::TooLarge { .. }) => {}
            read => return Ok(FreshHistory { history: read?, _room: None }),
        }
        let room = tokio::time::timeout(ROOM, self.large_histories.clone().acquire_owned()).await;
        let busy = ClusterError::Busy { retry_after: None };
        let room = room.ok().and_then(Result::ok).ok_or(busy)?;
        // Bookkeeping never keeps a rollback from being made.
        let history = self.read_history(daemonset, LARGEST_HISTORY, usize::MAX).await?;
        Ok(FreshHistory { history, _room: Some(room) })
    }

    /// Reads it up to so many bytes of templates and of last-applied annotations.
    async fn read_history(
        &self,
        daemonset: &DaemonSet,
        of_templates: usize,
        of_annotations: usize,
    ) -> Result<History, ClusterError> {
        let (mut revisions, mut templates, mut annotations): (Vec<Revision>, usize, usize) =
            (Vec::new(), 0, 0);
        self.each_revision_of(daemonset, |FreshRevision { observed }| {
            let revision = observed.revision;
            annotations += revision.last_applied.as_ref().map_or(0, |text| text.len());
            templates += revision.template.as_ref().map_or(0, |template| template.canonical().len());
            if templates <= of_templates && annotations <= of_annotations {
                revisions.push(revision);
            }
        })
        .await?;
        let fits = templates <= of_templates && annotations <= of_annotations;
        if fits { Ok(History::of(daemonset, revisions)) } else { Err(too_large()) }
    }

    /// Reads the revisions of a DaemonSet without the whole of their templates.
    ///
    /// # Errors
    /// [`ClusterError::TooLarge`], and what kept the API server from answering.
    pub async fn known_history<T: AsRef<TemplateSummary>>(
        &self,
        daemonset: &DaemonSet<T>,
    ) -> Result<KnownHistory, ClusterError> {
        let (mut revisions, mut size): (Vec<KnownRevision>, usize) = (Vec::new(), 0);
        self.each_revision_of(daemonset, |observed: ObservedRevision| {
            let revision = observed.revision.summary();
            size += revision.size();
            if size <= LARGEST_KNOWN_HISTORY {
                revisions.push(revision);
            }
        })
        .await?;
        if size <= LARGEST_KNOWN_HISTORY {
            Ok(KnownHistory::of(daemonset, revisions))
        } else {
            Err(too_large())
        }
    }

    /// Reads one ControllerRevision in the namespace of a DaemonSet: by a list, for which rollbackd's account needs no
    /// further right.
    ///
    /// # Errors
    /// [`ClusterError::NotFound`], and what kept the API server from answering.
    pub async fn revision(&self, key: &Key, controller_revision: &str) -> Result<Revision, ClusterError> {
        let mut found = None;
        let params = ListParams::default().fields(&format!("metadata.name={controller_revision}"));
        self.each_revision(key, params, |observed: ObservedRevision| found = Some(observed.revision)).await?;
        found.ok_or(ClusterError::NotFound)
    }

    /// Hands on the revisions that a DaemonSet controls and selects.
    async fn each_revision_of<T, R: AsRef<ObservedRevision> + DeserializeOwned>(
        &self,
        daemonset: &DaemonSet<T>,
        mut each: impl FnMut(R),
    ) -> Result<(), ClusterError> {
        let selector = LabelSelector::parse(&daemonset.selector).unwrap_or_default();
        let params = ListParams::default().labels(&daemonset.selector);
        let is_own = |observed: &ObservedRevision| {
            observed.revision.owner.as_ref() == Some(&daemonset.uid) && selector.matches(&observed.labels)
        };
        self.each_revision(&daemonset.key, params, |read: R| {
            if is_own(read.as_ref()) {
                each(read);
            }
        })
        .await
    }

    /// Lists ControllerRevisions in the namespace of a DaemonSet, one at a time.
    async fn each_revision<R: DeserializeOwned>(
        &self,
        key: &Key,
        params: ListParams,
        mut each: impl FnMut(R),
    ) -> Result<(), ClusterError> {
        let api: Api<ObservedRevision> = Api::namespaced(self.client.clone(), key.namespace.as_str());
        let mut params = params.limit(PAGE);
        loop {
            let request =
                ApiRequest::new(api.resource_url()).list(&params).map_err(kube::Error::BuildRequest)?;
            let page = list::each(&self.client, request, &mut each).await?;
            params.continue_token = page.continue_.filter(|token| !token.is_empty());
            if params.continue_token.is_none() {
                return Ok(());
            }
        }
    }

    /// Asks what the first write after a version of a DaemonSet, which has been written to since, made
    /// of it: a watch from there that ends after a second. The last state, if that write has deleted it.
    ///
    /// # Errors
    /// What kept the API server from answering.
    pub async fn after(&self, key: &Key, resource_version: &str) -> Result<Next, ClusterError> {
        let path = format!("/apis/apps/v1/namespaces/{}/daemonsets", key.namespace);
        let params = WatchParams::default().fields(&format!("metadata.name={}", key.name)).timeout(1);
        let params = params.disable_bookmarks();
        let request = ApiRequest::new(path).watch(&params, resource_version);
        let events = match self.client.request_text(request.map_err(kube::Error::BuildRequest)?).await {
            Err(kube::Error::Api(status)) if status.code == GONE => return Ok(Next::Forgotten),
            other => other?,
        };
        // Nothing yet: the cache that serves watches lags.
        let unread = || ClusterError::Unavailable {
            problem: "does not show what has changed yet",
            delivery: Delivery::NotCarriedOut,
            retry_after: None,
        };
        let first = events.lines().next().ok_or_else(unread)?;
        let event: Event = serde_json::from_str(first).map_err(kube::Error::SerdeError)?;
        match event.r#type.as_str() {
            "ERROR" if event.object["code"] == GONE => Ok(Next::Forgotten),
            "ERROR" => Err(unread()),
            _ => {
                let object: ObservedDaemonSet =
                    serde_json::from_value(event.object).map_err(kube::Error::SerdeError)?;
                Ok(Next::Version(object.daemonset))
            }
        }
    }

    /// Replaces the pod template, pinned to the DaemonSet that was read: any write in between,
    /// also of the status, makes it a [`ClusterError::Conflict`].
    ///
    /// # Errors
    /// With [`super::Delivery::Unknown`] the patch may have been carried out, or may yet be.
    pub async fn restore(&self, grant: &Grant, restore: Restore<'_>) -> Result<Restored, ClusterError> {
        self.patch(grant, restore.body(), false).await
    }

    /// Asks the API server what [`Live::restore`] would do, admission included.
    ///
    /// # Errors
    /// As [`Live::restore`]; nothing is ever changed.
    pub async fn try_restore(&self, grant: &Grant, restore: Restore<'_>) -> Result<Restored, ClusterError> {
        self.patch(grant, restore.body(), true).await
    }

    /// Makes sure that a patch pinned to this version of the DaemonSet can never be carried out:
    /// moves the version by a write that changes nothing but an annotation.
    ///
    /// # Errors
    /// [`ClusterError::Conflict`] means that the version has moved by itself.
    pub async fn outdate(
        &self,
        grant: &Grant,
        daemonset: &DaemonSet,
        rollback: uuid::Uuid,
    ) -> Result<(), ClusterError> {
        let body = json!({"metadata": pinned(daemonset, SETTLED, rollback)});
        self.patch(grant, body, false).await.map(drop)
    }

    /// Asks the API server what the controller would record of a rollback, admission and defaults included: a
    /// server-side dry run.
    ///
    /// # Errors
    /// As [`Live::try_restore`].
    pub async fn try_record(&self, grant: &Grant, restore: Restore<'_>) -> Result<DataDigest, ClusterError> {
        let stored: Stored = self.send(grant, &Patch::Strategic(restore.body()), true).await?.0;
        Ok(DataDigest::recorded(&stored.spec.template))
    }

    /// Writes `metadata.managedFields` and nothing else, pinned to the DaemonSet that was read. The generation does
    /// not move. Returns the entries as they are afterwards: the API server ignores a list that it can't decode.
    ///
    /// # Errors
    /// With [`ClusterError::Conflict`] nothing was written.
    pub async fn write_managed_fields(
        &self,
        grant: &Grant,
        daemonset: &DaemonSet,
        managed_fields: &ManagedFields,
    ) -> Result<ManagedFields, ClusterError> {
        let body = json!({"metadata": {
            "uid": daemonset.uid,
            "resourceVersion": daemonset.resource_version,
            "managedFields": managed_fields,
        }});
        let (written, _) = self.send::<FreshDaemonSet>(grant, &Patch::Merge(body), false).await?;
        Ok(written.managed_fields)
    }

    async fn patch(&self, grant: &Grant, body: Value, dry_run: bool) -> Result<Restored, ClusterError> {
        let (patched, warnings) = self.send(grant, &Patch::Strategic(body), dry_run).await?;
        let FreshDaemonSet { daemonset, managed_fields, .. } = patched;
        Ok(Restored { daemonset, managed_fields, warnings: warnings.take() })
    }

    async fn send<T: DeserializeOwned>(
        &self,
        grant: &Grant,
        patch: &Patch<Value>,
        dry_run: bool,
    ) -> Result<(T, Warnings), ClusterError> {
        let params =
            PatchParams { dry_run, field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        let key = grant.key();
        let request = ApiRequest::new(self.daemonsets(key).resource_url());
        let request = request.patch(key.name.as_str(), &params, patch);
        let mut request = request.map_err(kube::Error::BuildRequest)?;
        let warnings = Warnings::default();
        request.extensions_mut().insert(warnings.clone());
        Ok((self.client.request(request).await?, warnings))
    }

    /// Whether rollbackd's own account may patch a DaemonSet: tells a 403 of RBAC from one of
    /// admission.
    ///
    /// # Errors
    /// What kept the API server from answering.
    pub async fn may_patch(&self, key: &Key) -> Result<bool, ClusterError> {
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    verb: Some("patch".into()),
                    group: Some("apps".into()),
                    resource: Some("daemonsets".into()),
                    namespace: Some(key.namespace.to_string()),
                    name: Some(key.name.to_string()),
                    ..ResourceAttributes::default()
                }),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let reviews: Api<SelfSubjectAccessReview> = Api::all(self.client.clone());
        let answer = reviews.create(&PostParams::default(), &review).await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }

    /// A small request that only a healthy API server answers: a list of at most one DaemonSet, as
    /// metadata, which a quorum of etcd must confirm.
    ///
    /// # Errors
    /// What kept the API server from answering.
    pub async fn probe(&self, namespace: Option<&str>) -> Result<(), ClusterError> {
        let path = namespace.map_or_else(
            || "/apis/apps/v1/daemonsets".to_owned(),
            |namespace| format!("/apis/apps/v1/namespaces/{namespace}/daemonsets"),
        );
        let request = ApiRequest::new(path)
            .list_metadata(&ListParams::default().limit(1))
            .map_err(kube::Error::BuildRequest)?;
        self.client.request_text(request).await?;
        Ok(())
    }

    /// The API server's version, such as `v1.37.2`.
    ///
    /// # Errors
    /// What kept the API server from answering.
    pub async fn version(&self) -> Result<String, ClusterError> {
        let request = http::Request::builder().method(Method::GET).uri("/version").body(Vec::new());
        let request = request.map_err(kube::Error::HttpError)?;
        let version: Value = self.client.request(request).await?;
        Ok(version["gitVersion"].as_str().unwrap_or("unknown").to_owned())
    }
}

fn too_large() -> ClusterError {
    ClusterError::TooLarge { what: "the revisions of the DaemonSet" }
}

/// What a patch has made, or would make.
#[derive(Debug)]
pub struct Restored {
    pub daemonset: Arc<DaemonSet>,
    pub managed_fields: ManagedFields,
    /// What the API server and its admission warn of, in their words.
    pub warnings: Vec<String>,
}

impl Restore<'_> {
    fn body(&self) -> Value {
        let mut metadata = pinned(self.daemonset, ROLLBACK, self.rollback);
        if let Some(last_applied) = self.last_applied {
            metadata["annotations"][LAST_APPLIED] = last_applied.into();
        }
        json!({"metadata": metadata, "spec": {"template": self.template.replacing()}})
    }
}

/// Metadata with both preconditions and one annotation.
fn pinned(daemonset: &DaemonSet, annotation: &str, rollback: uuid::Uuid) -> Value {
    json!({
        "uid": daemonset.uid,
        "resourceVersion": daemonset.resource_version,
        "annotations": {annotation: rollback},
    })
}

//! Faults between rollbackd and the API server: a tower layer under `kube::Client`.

use std::{
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, future::BoxFuture};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use kube::client::Body;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower::{BoxError, Layer, Service};

use super::wait::PATIENCE;

/// What goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Answered without the API server.
    Answer { status: u16, headers: Vec<(&'static str, &'static str)>, body: &'static str },
    /// The API server does what it was asked, and its answer is replaced by this one.
    AnswerAfter { status: u16, body: &'static str },
    /// The answer says that it is another time.
    Dated(&'static str),
    /// The connection breaks before anything is sent.
    CutBefore,
    /// The API server does what it was asked, and the connection breaks before the answer.
    CutAfter,
    /// Nothing is sent and nothing is answered.
    Silence,
    /// Sent once this says true. Whoever asked may have given up by then: it is sent all the same, as a frozen
    /// API server would carry it out.
    Late(watch::Receiver<bool>),
    /// Every piece of the answer (an event of a watch) comes so much later.
    SlowBody(Duration),
    /// No piece of the answer comes before this says true.
    HeldBody(watch::Receiver<bool>),
    /// The connection breaks in the middle of the answer, once this is cancelled.
    CutBody(CancellationToken),
}

type Matcher = Arc<dyn Fn(&Request<Body>) -> bool + Send + Sync>;

struct Rule {
    matcher: Matcher,
    fault: Fault,
    left: usize,
}

/// The faults of one client. Clones share them.
#[derive(Clone, Default)]
pub struct Faults {
    rules: Arc<Mutex<Vec<Rule>>>,
    seen: Arc<Mutex<Vec<String>>>,
    hook: Arc<Mutex<Option<Hook>>>,
    late: Arc<watch::Sender<Option<u16>>>,
}

type Hook = Box<dyn FnMut(&Request<Body>) -> Option<BoxFuture<'static, ()>> + Send>;

impl Faults {
    /// Lets the next `times` requests that match go wrong.
    pub fn inject(
        &self,
        times: usize,
        fault: Fault,
        matcher: impl Fn(&Request<Body>) -> bool + Send + Sync + 'static,
    ) {
        self.rules.lock().unwrap().push(Rule { matcher: Arc::new(matcher), fault, left: times });
    }

    /// Lets lists come page by page, as from a server that does not stream them (Kubernetes 1.33): the watch after a
    /// list can go wrong by itself then.
    pub fn no_streamed_lists(&self) {
        let body = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Invalid","message":"sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled","code":422}"#;
        self.inject(usize::MAX, Fault::Answer { status: 422, headers: Vec::new(), body }, streamed_list);
    }

    /// Ends all faults.
    pub fn clear(&self) {
        self.rules.lock().unwrap().clear();
    }

    /// Runs something right before a request that it picks is sent: a write by somebody else between
    /// rollbackd's read and its patch.
    pub fn before(
        &self,
        hook: impl FnMut(&Request<Body>) -> Option<BoxFuture<'static, ()>> + Send + 'static,
    ) {
        *self.hook.lock().unwrap() = Some(Box::new(hook));
    }

    /// Waits until the API server has answered a request that was [`Fault::Late`]; returns the status.
    pub async fn late_answer(&self) -> u16 {
        let mut late = self.late.subscribe();
        let answered = tokio::time::timeout(PATIENCE, late.wait_for(Option::is_some)).await;
        answered.expect("waited for a late answer").expect("the sender lives").expect("there is one")
    }

    /// How many patches were sent for real.
    pub fn patches(&self) -> usize {
        let real = |request: &&String| request.starts_with("PATCH ") && !request.contains("dryRun");
        self.requests().iter().filter(real).count()
    }

    /// Every request so far, as `METHOD /path?query`.
    pub fn requests(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    fn next(&self, request: &Request<Body>) -> Option<Fault> {
        let mut rules = self.rules.lock().unwrap();
        let rule = rules.iter_mut().find(|rule| rule.left > 0 && (rule.matcher)(request))?;
        rule.left -= 1;
        Some(rule.fault.clone())
    }
}

/// Matches the patch of a rollback.
pub fn patch(request: &Request<Body>) -> bool {
    request.method() == Method::PATCH && !request.uri().query().unwrap_or_default().contains("dryRun")
}

/// Matches the metadata-only write that returns the ownership of fields after a rollback.
pub fn ownership_write(request: &Request<Body>) -> bool {
    let content_type = request.headers().get(http::header::CONTENT_TYPE);
    patch(request) && content_type.is_some_and(|it| it.as_bytes() == b"application/merge-patch+json")
}

fn query(request: &Request<Body>) -> &str {
    request.uri().query().unwrap_or_default()
}

/// Matches a list that is a stream of events, and goes on as a watch.
pub fn streamed_list(request: &Request<Body>) -> bool {
    query(request).contains("sendInitialEvents=true")
}

/// Matches the watch of a kind, such as `daemonsets`, that follows a list by pages ([`Faults::no_streamed_lists`]) or
/// another watch.
pub fn watch(plural: &'static str) -> impl Fn(&Request<Body>) -> bool + Send + Sync {
    move |request| {
        let watch = query(request).contains("watch=true") && !streamed_list(request);
        request.uri().path().ends_with(plural) && watch
    }
}

/// Matches a page of the list of a kind, and the probe, which is one.
pub fn list(plural: &'static str) -> impl Fn(&Request<Body>) -> bool + Send + Sync {
    move |request| {
        let list = request.method() == Method::GET && !query(request).contains("watch=true");
        request.uri().path().ends_with(plural) && list
    }
}

pub struct FaultLayer(pub Faults);

impl<S> Layer<S> for FaultLayer {
    type Service = Faulty<S>;
    fn layer(&self, inner: S) -> Faulty<S> {
        Faulty { inner, faults: self.0.clone() }
    }
}

#[derive(Clone)]
pub struct Faulty<S> {
    inner: S,
    faults: Faults,
}

type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;

impl<S, B> Service<Request<Body>> for Faulty<S>
where
    S: Service<Request<Body>, Response = Response<B>> + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Answer;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Answer, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.faults.seen.lock().unwrap().push(format!("{} {}", request.method(), request.uri()));
        let fault = self.faults.next(&request);
        let answers = self.faults.late.clone();
        let first = self.faults.hook.lock().unwrap().as_mut().and_then(|hook| hook(&request));
        // Lazy: nothing is sent before the future is polled.
        let sent = self.inner.call(request);
        let sent = async move {
            if let Some(first) = first {
                first.await;
            }
            sent.await
        };
        Box::pin(async move {
            match fault {
                None => Ok(whole(sent.await.map_err(Into::into)?)),
                Some(Fault::Answer { status, headers, body }) => Ok(answer(status, &headers, body)),
                Some(Fault::AnswerAfter { status, body }) => {
                    sent.await.map_err(Into::into)?.into_body().collect().await.map_err(Into::into)?;
                    Ok(answer(status, &[], body))
                }
                Some(Fault::Dated(date)) => {
                    let mut response = whole(sent.await.map_err(Into::into)?);
                    let date = http::HeaderValue::from_static(date);
                    response.headers_mut().insert(http::header::DATE, date);
                    Ok(response)
                }
                Some(Fault::CutBefore) => Err(cut()),
                Some(Fault::CutAfter) => {
                    sent.await.map_err(Into::into)?.into_body().collect().await.map_err(Into::into)?;
                    Err(cut())
                }
                Some(Fault::Silence) => std::future::pending().await,
                Some(Fault::Late(mut open)) => {
                    let late = tokio::spawn(async move {
                        let _ = open.wait_for(|open| *open).await;
                        let response = sent.await.map_err(Into::into)?;
                        answers.send_replace(Some(response.status().as_u16()));
                        Ok::<_, BoxError>(response)
                    });
                    Ok(whole(late.await.expect("the late request did not panic")?))
                }
                Some(Fault::SlowBody(delay)) => {
                    let response = sent.await.map_err(Into::into)?;
                    Ok(response.map(|body| {
                        let frames =
                            body.map_err(Into::into).into_data_stream().then(move |piece| async move {
                                tokio::time::sleep(delay).await;
                                piece.map(http_body::Frame::data)
                            });
                        StreamBody::new(frames).boxed_unsync()
                    }))
                }
                Some(Fault::HeldBody(open)) => {
                    let response = sent.await.map_err(Into::into)?;
                    Ok(response.map(|body| {
                        let frames = body.map_err(Into::into).into_data_stream().then(move |piece| {
                            let mut open = open.clone();
                            async move {
                                // Also open when the test has ended.
                                let _ = open.wait_for(|open| *open).await;
                                piece.map(http_body::Frame::data)
                            }
                        });
                        StreamBody::new(frames).boxed_unsync()
                    }))
                }
                Some(Fault::CutBody(now)) => {
                    let response = sent.await.map_err(Into::into)?;
                    Ok(response.map(|body| {
                        let pieces =
                            body.map_err(Into::into).into_data_stream().take_until(now.cancelled_owned());
                        let pieces = pieces.chain(futures_util::stream::iter([Err(cut())]));
                        StreamBody::new(pieces.map(|piece| piece.map(http_body::Frame::data))).boxed_unsync()
                    }))
                }
            }
        })
    }
}

fn whole<B>(response: Response<B>) -> Answer
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    response.map(|body| body.map_err(Into::into).boxed_unsync())
}

fn answer(status: u16, headers: &[(&str, &str)], body: &'static str) -> Answer {
    let mut response = Response::builder().status(StatusCode::from_u16(status).expect("a status"));
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    let body = Full::new(Bytes::from_static(body.as_bytes())).map_err(|never| match never {}).boxed_unsync();
    response.body(body).expect("a response")
}

fn cut() -> BoxError {
    std::io::Error::from(std::io::ErrorKind::ConnectionReset).into()
}

//! The HTTP client below every store that has a network: each answer must begin in time, and go on.
//!
//! A connection that a balancer or a firewall forgot takes what it is given and never answers. The library below keeps idle
//! connections, and would try one dead one after another, each for as long again.
//! Promises: after an answer that did not come no idle connection is used any more; a store, or a link, that is slow and lives
//! gets more time with each answer that is late. Never: repeats a request; looks at a clock to decide anything else.

use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt as _};
use http_body::{Body, Frame, SizeHint};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
    ReqwestConnector,
};
use tokio::time::timeout;

/// An answer begins within this, if little was sent: stores answer in milliseconds, and a busy one within seconds.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);

/// Each so many bytes that are sent give a second more.
const BYTES_PER_SECOND: usize = 20_000;

/// But no more than this in all, at first: 8 MiB parts pass at 140 KB/s.
const ANSWER_WITHIN_AT_MOST: Duration = Duration::from_secs(60);

/// With each answer that does not come the limit doubles, up to this: four parts at a time pass at 1 Mbit/s.
pub(super) const LONGEST: Duration = Duration::from_secs(300);
const DOUBLINGS_MAX: u32 = 5;

/// An answer that began goes on within this.
const STALLED_AFTER: Duration = Duration::from_secs(60);

/// Requests of this size and more have a patience of their own: that small ones are answered says nothing of them.
const LARGE_BYTES: usize = 1 << 20;

/// Makes the clients.
#[derive(Debug, Clone)]
pub(super) struct Connector(Arc<dyn HttpConnector>);

impl Default for Connector {
    fn default() -> Self {
        Self(Arc::new(ReqwestConnector::default()))
    }
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = self.0.connect(options)?;
        let (connector, options) = (Arc::clone(&self.0), options.clone());
        let late = Default::default();
        Ok(HttpClient::new(Service { connector, options, client: Mutex::new(Numbered { number: 0, client }), late }))
    }
}

/// A client with the idle connections that it keeps, told apart from the one before.
#[derive(Debug, Clone)]
struct Numbered {
    number: u64,
    client: HttpClient,
}

#[derive(Debug)]
struct Service {
    connector: Arc<dyn HttpConnector>,
    options: ClientOptions,
    client: Mutex<Numbered>,
    /// Answers that did not come since the last that came early, of small requests and of large ones.
    late: [AtomicU32; 2],
}

/// How long the answer to such a request may take to begin.
fn usual_limit(request: &HttpRequest) -> Duration {
    if request.method().as_str() == "POST" {
        // Puts the parts of an object together, in the store's own time.
        return ANSWER_WITHIN_AT_MOST;
    }
    let sending = Duration::from_secs((request.body().content_length() / BYTES_PER_SECOND) as u64);
    (ANSWER_WITHIN + sending).min(ANSWER_WITHIN_AT_MOST)
}

impl Service {
    fn client(&self) -> Numbered {
        self.client.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Leaves the idle connections of that client alone from now on; what is under way there goes on.
    fn forget(&self, number: u64) {
        let mut current = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if current.number == number
            && let Ok(client) = self.connector.connect(&self.options)
        {
            *current = Numbered { number: number + 1, client };
        }
    }
}

#[async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let usual = usual_limit(&request);
        let late = &self.late[usize::from(request.body().content_length() >= LARGE_BYTES)];
        let limit = (usual * (1 << late.load(Ordering::Relaxed).min(DOUBLINGS_MAX))).min(LONGEST);
        let Numbered { number, client } = self.client();
        let mut answer = pin!(client.execute(request));
        let answered = match timeout(usual, &mut answer).await {
            Ok(early) => {
                late.store(0, Ordering::Relaxed);
                Ok(early)
            }
            Err(_) => timeout(limit - usual, answer).await,
        };
        match answered {
            Ok(Ok(answer)) => Ok(answer.map(going_on)),
            // The system below gave the connection up.
            Ok(Err(error)) if error.kind() == HttpErrorKind::Timeout => {
                self.forget(number);
                Err(error)
            }
            Ok(Err(error)) => Err(error),
            Err(_) => {
                late.fetch_add(1, Ordering::Relaxed);
                self.forget(number);
                Err(HttpError::new(HttpErrorKind::Timeout, NoAnswer(limit)))
            }
        }
    }
}

/// The body of an answer, or an error if nothing more of it comes.
struct GoingOn {
    frames: Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, HttpError>> + Send + Sync>>,
    size: SizeHint,
}

fn going_on(body: HttpResponseBody) -> HttpResponseBody {
    let size = body.size_hint();
    // The library asks once more after the end.
    let frames = stream::unfold(Some(body), |body| async move {
        let mut body = body?;
        let frame = poll_fn(|context| Pin::new(&mut body).poll_frame(context));
        match timeout(STALLED_AFTER, frame).await {
            Ok(frame) => Some((frame?, Some(body))),
            Err(_) => Some((Err(HttpError::new(HttpErrorKind::Timeout, NoAnswer(STALLED_AFTER))), None)),
        }
    });
    HttpResponseBody::new(GoingOn { frames: Box::pin(frames.fuse()), size })
}

impl Body for GoingOn {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        self.frames.as_mut().poll_next(context)
    }

    fn size_hint(&self) -> SizeHint {
        self.size
    }
}

/// Nothing came for so long.
#[derive(Debug)]
struct NoAnswer(Duration);

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no answer within {} s, the connection is given up", self.0.as_secs())
    }
}

impl std::error::Error for NoAnswer {}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "the clock of a paused runtime")]

    use object_store::client::HttpRequestBody;
    use tokio::time::{Instant, sleep};

    use super::*;

    /// A store whose every answer takes so long; none come over the connections of the first clients.
    #[derive(Debug)]
    struct Slow {
        takes: Duration,
        dead: AtomicU32,
    }

    #[derive(Debug)]
    struct Client(Option<Duration>);

    /// The body of an answer that does not go on.
    struct Stalled;

    impl HttpConnector for Slow {
        fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
            let is_dead = self.dead.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |dead| dead.checked_sub(1)).is_ok();
            Ok(HttpClient::new(Client((!is_dead).then_some(self.takes))))
        }
    }

    #[async_trait]
    impl HttpService for Client {
        async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
            sleep(self.0.unwrap_or(Duration::MAX)).await;
            let stalls = request.method().as_str() == "GET";
            let body = HttpRequestBody::empty();
            Ok(HttpResponse::new(if stalls { HttpResponseBody::new(Stalled) } else { HttpResponseBody::new(body) }))
        }
    }

    impl Body for Stalled {
        type Data = Bytes;
        type Error = HttpError;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
            Poll::Pending
        }
    }

    fn client(takes_s: u64, dead: u32) -> HttpClient {
        let slow = Slow { takes: Duration::from_secs(takes_s), dead: dead.into() };
        Connector(Arc::new(slow)).connect(&ClientOptions::new()).expect("a client")
    }

    fn request(method: &str, bytes: usize) -> HttpRequest {
        let mut request = HttpRequest::new(HttpRequestBody::from(Bytes::from(vec![0; bytes])));
        *request.method_mut() = method.parse().expect("a method");
        request
    }

    /// Repeats it until it is answered; how long that took, and at which try.
    async fn answered(client: &HttpClient, bytes: usize) -> (u64, u32) {
        let began = Instant::now();
        for tries in 1..100 {
            match client.execute(request("PUT", bytes)).await {
                Ok(_) => return (began.elapsed().as_secs(), tries),
                Err(error) => assert_eq!(error.kind(), HttpErrorKind::Timeout),
            }
        }
        panic!("it is never answered")
    }

    #[test]
    fn what_is_sent_gives_time_up_to_a_minute() {
        let cases = [("PUT", 0, 15), ("GET", 0, 15), ("PUT", 200_000, 25), ("PUT", 8 << 20, 60), ("POST", 0, 60)];
        for (method, bytes, seconds) in cases {
            assert_eq!(usual_limit(&request(method, bytes)).as_secs(), seconds, "{method} of {bytes} bytes");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn dead_connections_cost_one_limit_however_many_there_are() {
        assert_eq!(answered(&client(1, 1), 100).await, (16, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_slow_and_lives_is_given_time_and_keeps_it() {
        let slow = client(40, 0);
        assert_eq!(answered(&slow, 100).await, (15 + 30 + 40, 3));
        assert_eq!(answered(&slow, 100).await, (40, 1));
        // 8 MiB at 1 Mbit/s, alone and as one of four.
        assert_eq!(answered(&client(68, 0), 8 << 20).await, (60 + 68, 2));
        assert_eq!(answered(&client(268, 0), 8 << 20).await, (60 + 120 + 240 + 268, 4));
    }

    #[tokio::test(start_paused = true)]
    async fn small_answers_do_not_take_the_time_from_large_requests() {
        let narrow = client(68, 0);
        assert_eq!(answered(&narrow, 8 << 20).await.1, 2);
        assert_eq!(answered(&narrow, 100).await.1, 4);
        assert_eq!(answered(&narrow, 8 << 20).await, (68, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_does_not_go_on_is_an_error() {
        let (began, client) = (Instant::now(), client(1, 0));
        let answer = client.execute(request("GET", 0)).await.expect("it begins");
        let error = answer.into_body().bytes().await.expect_err("it does not go on");
        assert_eq!((error.kind(), began.elapsed()), (HttpErrorKind::Timeout, Duration::from_secs(61)));
    }
}

//! What an API server answers to a watch, in pieces: what is heard does not depend on where they end.
//!
//! The first byte says which kind is watched, and by a bit of four whether the answers are protobuf; the second how long
//! the pieces are. `====` on a line of its
//! own ends an answer; one that begins with a status of three digits and a space is an answer with that
//! status.

#![no_main]

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use kube::client::Body;
use libfuzzer_sys::fuzz_target;
use pointsman::source::cluster::{Format, Kind, Notice, WatchOptions, follow};
use pointsman::source::convert::Converter;
use tokio::runtime::Builder;
use tower::service_fn;

const PLURALS: [&str; 4] = ["services", "endpointslices", "nodes", "servicecidrs"];

type Answer = (u16, Vec<Bytes>);

fn split(mut text: &[u8], separator: &[u8]) -> Vec<Vec<u8>> {
    let mut parts = Vec::new();
    while let Some(at) = text
        .windows(separator.len())
        .position(|here| here == separator)
    {
        parts.push(text[..at].to_vec());
        text = &text[at + separator.len()..];
    }
    parts.push(text.to_vec());
    parts
}

fn pieces(text: &[u8], seed: Option<u8>) -> Vec<Bytes> {
    let Some(seed) = seed else {
        return vec![Bytes::copy_from_slice(text)];
    };
    let mut state = u32::from(seed);
    let mut rest = text;
    let mut pieces = Vec::new();
    while !rest.is_empty() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let most = 1 + usize::from(seed) / 4;
        let length = (1 + (state >> 16) as usize % most).min(rest.len());
        pieces.push(Bytes::copy_from_slice(&rest[..length]));
        rest = &rest[length..];
    }
    pieces
}

fn answers(text: &[u8], seed: Option<u8>) -> VecDeque<Answer> {
    let answer = |part: Vec<u8>| {
        let status = part.split_at_checked(4).and_then(|(status, rest)| {
            let status = std::str::from_utf8(status).ok()?.strip_suffix(' ')?;
            Some((
                status
                    .parse()
                    .ok()
                    .filter(|status| (200..600).contains(status))?,
                rest,
            ))
        });
        match status {
            Some((status, rest)) => (status, pieces(rest, seed)),
            None => (200, pieces(&part, seed)),
        }
    };
    split(text, b"\n====\n").into_iter().map(answer).collect()
}

/// What is heard of one kind if the server answers so, and nothing after that.
fn heard(kind: Kind, format: Format, answers: VecDeque<Answer>) -> Vec<String> {
    let answers = Arc::new(Mutex::new(answers));
    let server = service_fn(move |request: Request<Body>| {
        let path = request.uri().path();
        let mine = path.ends_with(PLURALS[kind as usize]);
        let next = mine.then(|| answers.lock().expect("no panic").pop_front());
        async move {
            let Some((status, pieces)) = next.flatten() else {
                return std::future::pending().await;
            };
            let frames = pieces
                .into_iter()
                .map(|piece| Ok::<_, Infallible>(Frame::data(piece)));
            let body = StreamBody::new(stream::iter(frames));
            let response = Response::builder().status(status);
            let response = response.header("Content-Type", format.name()).body(body);
            Ok::<_, Infallible>(response.expect("a status"))
        }
    });
    // Time passes when there is nothing else to do.
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let client = kube::Client::new(server, "default");
        let options = WatchOptions::new("node-1");
        let mut notices = follow(&client, Converter::new("node-1"), &options);
        let mut heard = Vec::new();
        // Longer than anything that is waited for.
        let patience = Duration::from_secs(3600);
        while let Ok(Some(notice)) = tokio::time::timeout(patience, notices.recv()).await {
            heard.push(match notice {
                // How long until it comes back is by chance.
                Notice::Failed(kind, why, _) => format!("{kind:?}: {why}"),
                notice => format!("{notice:?}"),
            });
        }
        heard
    })
}

fuzz_target!(|data: &[u8]| {
    let [kind, seed, text @ ..] = data else {
        return;
    };
    let format = Format::ALL[usize::from(kind & 4 == 0)];
    let kind = Kind::ALL[usize::from(*kind) % Kind::ALL.len()];
    let whole = heard(kind, format, answers(text, None));
    let in_pieces = heard(kind, format, answers(text, Some(*seed)));
    assert_eq!(whole, in_pieces);
});

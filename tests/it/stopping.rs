//! SIGTERM: not ready at once, what is under way is finished, nothing holds it up. And what it has logged.

use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::support::{
    controlplane::ControlPlane,
    faults::{self, Fault},
    rollbackd::{Rollbackd, Setup},
    space::{Space, updated},
    wait::until,
};

#[tokio::test]
async fn while_endpoints_update_it_answers_and_says_that_it_is_going() {
    let space = Space::new(ControlPlane::shared()).await;
    space.agent(&["img:1"]).await;
    // Longer than this takes: nobody waits for it.
    let flags = ["--drain-delay", "1h"];
    let mut rollbackd =
        Rollbackd::start_with(Setup { flags: &flags, ..Setup::new(ControlPlane::shared()) }).await;
    let api = rollbackd.api.clone();
    let answers = async {
        let not_ready = until("readiness to fail", async || {
            let answer = api.get("/readyz?verbose").await;
            if answer.status == 503 { Ok(answer) } else { Err(answer) }
        })
        .await;
        assert!(not_ready.text.contains("[-]shutdown"), "{}", not_ready.text);
        assert_eq!(api.get("/livez").await.status, 200);
        api.get(&space.path("agent")).await.expect(200);
    };
    tokio::select! {
        () = rollbackd.stop() => panic!("it has stopped"),
        () = answers => {}
    }
}

#[tokio::test]
async fn streams_and_half_sent_requests_hold_nothing_up() {
    let space = Space::new(ControlPlane::shared()).await;
    let mut rollbackd = Rollbackd::start().await;
    space.agent(&["img:1"]).await;
    space.set_image("agent", "x:unready").await;
    let path = format!("{}/status", space.path("agent"));
    rollbackd.api.shows(&path, "the bad image", updated(2, 1)).await;
    let events = rollbackd.api.events(&path).await;
    let mut half = TcpStream::connect(rollbackd.address).await.expect("it listens");
    half.write_all(b"GET /livez HTTP/1.1\r\nHost: localh").await.expect("it reads");

    let (told, ()) = tokio::join!(events.into_all(), rollbackd.stop());
    assert!(told.iter().all(|event| event.name == "progress"), "{told:#?}");
    assert!(TcpStream::connect(rollbackd.address).await.is_err(), "it still listens");
}

#[tokio::test]
async fn a_rollback_under_way_is_finished_and_answered() {
    let space = Space::new(ControlPlane::shared()).await;
    space.agent(&["img:1", "img:2"]).await;
    let mut rollbackd = Rollbackd::start().await;
    let (open, late) = tokio::sync::watch::channel(false);
    rollbackd.faults.inject(1, Fault::Late(late), faults::patch);
    let api = rollbackd.api.clone();
    let path = format!("{}/rollback", space.path("agent"));
    let asked = tokio::spawn(async move { api.post(&path, &json!({"toRevision": 1})).await });
    until(
        "the patch to be on its way",
        async || {
            if rollbackd.faults.patches() > 0 { Ok(()) } else { Err(()) }
        },
    )
    .await;
    // It has begun to stop when the patch goes out.
    tokio::join!(biased; rollbackd.stop(), async { open.send_replace(true) });
    let made = asked.await.expect("it does not panic").expect(202);
    assert_eq!(made["state"], "progressing");
    let image = &space.observed("agent").await["spec"]["template"]["spec"]["containers"][0]["image"];
    assert_eq!(*image, Value::from("img:1"));
}

//! The JSON door for a caller that accepts JSON: the same messages as the gRPC door's, in protobuf's JSON mapping.

use serde_json::{Value, json};

use crate::support::{Answer, TestGateway, http};

fn object(answer: &Answer) -> Value {
    assert_eq!(answer.header("content-type"), Some("application/json"), "{answer:?}");
    serde_json::from_str(&answer.body).unwrap()
}

#[tokio::test]
async fn a_caller_that_accepts_json_gets_the_whole_outcome_and_one_that_does_not_the_legacy_line() {
    let gateway = TestGateway::start().await;
    let mut phone = gateway.bind("ann", "mail").await;
    let body = r#"{"USERID":"ann","Event":"mail","meSSage":"m"}"#;
    for kind in [
        "application/json",
        "Application/JSON; charset=utf-8",
        "text/html, application/json;q=0.9",
        "application/*",
        "application/json, text/plain;q=0, */*",
        "application/json, text/*;Q=0.0, */*;q=0.1",
    ] {
        let outcome = object(&gateway.json().accept(kind).post(body).await);
        assert_eq!((&outcome["level"], &outcome["matched"]), (&json!("LEVEL_ACCEPTED"), &json!("1")));
        assert_eq!((&outcome["accepted"], &outcome["dropped"]), (&json!("1"), &json!("0")));
        assert!(outcome["messageId"].as_str().unwrap().contains('-'));
        assert_eq!(phone.next_text().await, "m");
    }
    // The last is what a widespread library sends for callers who did not ask.
    for kind in [
        "text/plain",
        "*/*",
        "application/json;q=0",
        "application/*, application/json;q=0",
        "application/json, TEXT/plain",
        "application/json, text/*",
        "application/json, text/plain, */*",
    ] {
        assert_eq!(gateway.json().accept(kind).post(body).await.body, "message sent to 1 clients");
    }
    let stray = r#"{"userId":"ann","event":"mail","message":"m","waitFor":{"a":1},"ttl":true}"#;
    assert_eq!(gateway.json().post(stray).await.body, "message sent to 1 clients", "unknown keys, as ever");
}

#[tokio::test]
async fn the_options_of_the_grpc_door_are_understood() {
    let gateway = TestGateway::start().await;
    let _phones = (gateway.bind("ann", "mail").await, gateway.bind("ann", "mail").await);
    let mut json = gateway.json().accept("application/json");
    let push = json!({
        "userId": "ann", "event": "mail", "message": "m", "waitFor": "LEVEL_WRITTEN", "ttl": "60s",
        "priority": "PRIORITY_HIGH", "perConnection": true, "idempotencyKey": "1",
    });
    let outcome = object(&json.post(push.to_string()).await);
    assert_eq!((&outcome["level"], &outcome["written"]), (&json!("LEVEL_WRITTEN"), &json!("2")));
    assert_eq!((outcome["connections"].as_array().unwrap().len(), &outcome["replayed"]), (2, &json!(false)));
    let again = object(&json.post(push.to_string()).await);
    assert_eq!((&again["messageId"], &again["replayed"]), (&outcome["messageId"], &json!(true)));
    let binary = json!({ "userId": "ann", "event": "mail", "binary": "AAEC" });
    assert_eq!(object(&json.post(binary.to_string()).await)["accepted"], json!("2"));
}

#[tokio::test]
async fn what_is_wrong_is_told_with_its_field() {
    let gateway = TestGateway::start().await;
    let mut json = gateway.json().accept("application/json");
    for (push, field) in [
        (json!({ "userId": "", "event": "mail", "message": "m" }), "user_id"),
        (json!({ "userId": "ann", "event": "mail" }), "message"),
        (json!({ "userId": "ann", "event": "mail", "message": "m", "ttl": "-1s" }), "ttl"),
        (json!({ "userId": "ann", "event": "mail", "message": "m", "waitFor": "LEVEL_NONE" }), "wait_for"),
        (json!({ "userId": "ann", "event": "mail", "message": "m", "wait_for": 9 }), "wait_for"),
        (json!({ "userId": "ann", "event": "mail", "message": "m", "ttl": "1 minute" }), "ttl"),
        (json!({ "userId": "ann", "event": "mail", "message": "m", "ttl": { "seconds": 1 } }), "ttl"),
        (json!({ "userId": "ann", "event": "mail", "message": "m", "ttl": "315576000001s" }), "ttl"),
        (json!({ "userId": "ann", "event": "mail", "message": "m", "perConnection": "yes" }), "per_connection"),
        (json!({ "userId": "ann", "event": "mail", "message": "m", "priority": 1.5 }), "priority"),
        (
            json!({ "userId": "ann", "event": "mail", "message": "m", "excludeConnectionIds": "x" }),
            "exclude_connection_ids",
        ),
        (
            json!({ "userId": "ann", "event": "mail", "message": "m", "excludeConnectionIds": [7] }),
            "exclude_connection_ids[0]",
        ),
        (json!({ "userId": "ann", "event": "mail", "message": "m", "waitfor": "LEVEL_ACKED" }), "waitfor"),
        (json!({ "userId": "ann", "event": "mail", "message": "m", "unknown": [1] }), "unknown"),
        (json!({ "userId": "ann", "event": "mail", "binary": "no base64" }), "binary"),
        (json!({ "userId": "ann", "event": "mail", "message": 7 }), "message"),
        (json!([]), ""),
    ] {
        let answer = json.post(push.to_string()).await;
        let error = object(&answer);
        assert_eq!((answer.status, &error["code"], &error["field"]), (400, &json!(3), &json!(field)), "{push}");
        assert!(!error["message"].as_str().unwrap().is_empty());
    }
    for (body, field) in [
        (r#"{"userId":"ann","user_id":"bob","event":"mail","message":"m"}"#, "user_id"),
        (r#"{"userId":"ann","USERID":"bob","event":"mail","message":"m"}"#, "user_id"),
        (r#"{"userId":"ann","event":"mail","message":"m","binary":"AAEC"}"#, "binary"),
        (r#"{"userId":"ann","event":"mail","message":"m"} {}"#, ""),
        (r#"{"userId":"ann","event":"mail","message":"m""#, ""),
        (r#"{"unknown": what stands here is not looked at"#, "unknown"),
        ("null", ""),
    ] {
        let answer = json.post(body).await;
        assert_eq!((answer.status, &object(&answer)["field"]), (400, &json!(field)), "{body}");
    }
    assert_eq!(
        gateway.metric("pushgate_pushes_total{door=\"json\",result=\"unmatched\"}").await,
        0,
        "nothing was done"
    );
}

#[tokio::test]
async fn each_key_goes_by_its_name_in_json_and_in_the_proto_file() {
    let gateway = TestGateway::start().await;
    let _phone = gateway.bind("ann", "mail").await;
    let mut json = gateway.json().accept("application/json");
    for push in [
        json!({ "userId": "ann", "event": "mail", "message": "m", "waitFor": "LEVEL_WRITTEN", "perConnection": true }),
        json!({ "user_id": "ann", "event": "mail", "message": "m", "wait_for": 2, "per_connection": true, "ttl": null }),
    ] {
        let outcome = object(&json.post(push.to_string()).await);
        assert_eq!((&outcome["written"], &outcome["connections"][0]["level"]), (&json!("1"), &json!("LEVEL_WRITTEN")));
        let batch = json!({ "pushes": [push] });
        let answer = object(&gateway.json().path("/push/batch").post(batch.to_string()).await);
        assert_eq!(answer["results"][0]["outcome"]["written"], json!("1"));
    }
}

#[tokio::test]
async fn what_is_wrong_in_a_batch_is_told_with_its_place_and_nothing_is_done() {
    let gateway = TestGateway::start().await;
    let mut phone = gateway.bind("ann", "mail").await;
    let mut json = gateway.json().path("/push/batch");
    let good = json!({ "userId": "ann", "event": "mail", "message": "m" });
    for (second, field) in [
        (json!({ "userId": "ann", "event": "mail", "message": "m", "waitfor": 1 }), "pushes[1].waitfor"),
        (json!({ "userId": "ann", "event": "mail", "message": "m", "ttl": 1 }), "pushes[1].ttl"),
        (json!("push"), "pushes[1]"),
        (Value::Null, "pushes[1]"),
    ] {
        let answer = json.post(json!({ "pushes": [good, second] }).to_string()).await;
        assert_eq!((answer.status, &object(&answer)["field"]), (400, &json!(field)), "{second}");
    }
    assert_eq!(object(&json.post(json!({ "push": [good] }).to_string()).await)["field"], json!("push"));
    assert_eq!(gateway.json().push("ann", "mail", "the first that arrives").await, 1);
    assert_eq!(phone.next_text().await, "the first that arrives");
}

#[tokio::test]
async fn a_refusal_in_this_mode_is_json_too() {
    let gateway = TestGateway::with(|config| {
        config.message_bytes_max = 100;
        config.request_bytes_max = 200;
        config.request_timeout = std::time::Duration::from_millis(300);
    })
    .await;
    let push = |message: usize| json!({ "userId": "a", "event": "e", "message": "m".repeat(message) }).to_string();
    let answer = gateway.json().accept("application/json").post(push(201)).await;
    assert_eq!((answer.status, &object(&answer)["code"]), (413, &json!(8)));
    let answer = gateway.json().accept("application/json").post(push(101)).await;
    assert_eq!((answer.status, &object(&answer)["field"]), (413, &json!("message")));
    let head = "POST /push HTTP/1.1\r\nhost: x\r\naccept: application/json\r\n";
    let answer = http(gateway.control, &format!("{head}content-length: 2\r\n\r\n{{")).await;
    assert_eq!((answer.status, &object(&answer)["code"]), (408, &json!(4)));
    let answer = http(gateway.control, "GET /push/batch HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!((answer.status, answer.header("allow"), &object(&answer)["code"]), (405, Some("POST"), &json!(12)));
}

#[tokio::test]
async fn a_503_in_this_mode_is_json_and_says_when_to_come_back() {
    let gateway = TestGateway::built(|_| (), |builder| builder.push_authorizer(CheckAway)).await;
    let answer = gateway.json().accept("application/json").post("{}").await;
    assert_eq!((answer.status, answer.header("retry-after"), &object(&answer)["code"]), (503, Some("5"), &json!(14)));

    let gateway = TestGateway::with(|config| config.waiting_pushes_max = 1).await;
    let _phone = gateway.bind("ann", "mail").await;
    let followed = json!({ "userId": "ann", "event": "mail", "message": "m", "perConnection": true });
    let batch = json!({ "pushes": [followed, followed] }).to_string();
    let answer = object(&gateway.json().path("/push/batch").post(batch).await);
    assert_eq!(answer["results"][1]["error"]["code"], json!(8), "the first holds the only place");
}

struct CheckAway;

#[async_trait::async_trait]
impl pushgate::PushAuthorizer for CheckAway {
    async fn authorize(&self, _: &pushgate::PushCredentials) -> Result<pushgate::PushScope, pushgate::PushRefused> {
        Err(pushgate::PushRefused::Unavailable)
    }
}

#[tokio::test]
async fn a_batch_has_a_result_for_each_push_in_order() {
    let gateway = TestGateway::start().await;
    let mut phone = gateway.bind("ann", "mail").await;
    let mut json = gateway.json().path("/push/batch");
    let batch = json!({ "pushes": [
        { "userId": "ann", "event": "mail", "message": "1" },
        { "userId": "ann", "event": "", "message": "2" },
        { "userId": "ann", "event": "mail", "message": "3" },
    ] });
    let answer = object(&json.post(batch.to_string()).await);
    assert_eq!(answer["results"][0]["outcome"]["accepted"], json!("1"));
    assert_eq!(answer["results"][1]["error"]["field"], json!("event"));
    assert_eq!(answer["results"][2]["outcome"]["accepted"], json!("1"));
    assert_eq!((phone.next_text().await, phone.next_text().await), ("1".to_owned(), "3".to_owned()));
    let empty = json.post("{}").await;
    assert_eq!((empty.status, &object(&empty)["field"]), (400, &json!("pushes")));
}

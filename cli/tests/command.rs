//! The command as people and scripts call it, without a registry.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::{Command, Output};

/// Runs the command with an environment of its own.
fn entrepot(args: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_entrepot"))
        .args(args)
        .env_clear()
        .envs(environment.iter().copied())
        .output()
        .unwrap()
}

fn errors(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// An address where nobody listens.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

/// Answers one HTTP request with `head`.
fn answering(head: &'static str) -> (String, std::thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = vec![];
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            assert_eq!(stream.read(&mut byte).unwrap(), 1);
            request.push(byte[0]);
        }
        stream.write_all(head.as_bytes()).unwrap();
        String::from_utf8(request).unwrap()
    });
    (address, thread)
}

#[test]
fn help_teaches_the_environment_and_shows_examples() {
    let help = entrepot(&["--help"], &[]);
    let text = String::from_utf8(help.stdout).unwrap();
    assert!(help.status.success());
    for part in ["ENTREPOT_API", "ENTREPOT_KEY", "ENTREPOT_BOOTSTRAP_KEY", "entrepot rule create quay --upstream quay"]
    {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let help = String::from_utf8(entrepot(&["upstream", "create", "--help"], &[]).stdout).unwrap();
    assert!(help.contains("--allow-private-addresses") && help.contains("Examples:"), "{help}");
}

#[test]
fn without_a_key_it_says_where_keys_come_from() {
    for (environment, part) in [
        (&[][..], "ENTREPOT_KEY is not set"),
        (&[("ENTREPOT_KEY", "")], "ENTREPOT_KEY is not set"),
        (&[("ENTREPOT_KEY", "no-colon")], "`<key id>:<secret>`"),
        (&[("ENTREPOT_KEY", "line:bre\nak")], "`<key id>:<secret>`"),
    ] {
        let output = entrepot(&["rule", "list"], environment);
        assert_eq!(output.status.code(), Some(2));
        assert!(errors(&output).starts_with("error: ") && errors(&output).contains(part), "{}", errors(&output));
        assert!(!errors(&output).contains("colon"), "the key is not shown");
    }
}

#[test]
fn an_api_that_is_not_there_says_what_to_start_or_set() {
    let api = format!("http://{}", nobody());
    let output = entrepot(&["rule", "list"], &[("ENTREPOT_KEY", "admin:secret99"), ("ENTREPOT_API", &api)]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        errors(&output),
        format!(
            "error: cannot reach the API at {api} (connection refused): is `entrepot up` running? If the API is \
             elsewhere, set ENTREPOT_API or --api\n"
        )
    );
}

#[test]
fn an_address_that_is_none_is_a_mistake_in_the_call() {
    for api in ["127.0.0.1:5001", "ftp://127.0.0.1", "http://", "not a url"] {
        let output = entrepot(&["rule", "list", "--api", api], &[("ENTREPOT_KEY", "admin:secret99")]);
        assert_eq!(output.status.code(), Some(2), "{api}");
        assert!(errors(&output).contains(api) && errors(&output).contains("http://127.0.0.1:5001"), "{api}");
    }
}

#[test]
fn mistakes_in_the_call_exit_with_2() {
    for args in [&["rule", "create", "demo"][..], &["upstream", "create", "x", "--kind", "nexus"], &["frobnicate"], &[]]
    {
        assert_eq!(entrepot(args, &[("ENTREPOT_KEY", "admin:secret99")]).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn health_is_an_exit_code() {
    let (address, server) = answering("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nready\n");
    let output = entrepot(&["health", "--url", &format!("http://{address}/readyz")], &[]);
    assert_eq!((output.status.code(), output.stdout), (Some(0), b"ready\n".to_vec()));
    assert!(server.join().unwrap().starts_with("GET /readyz HTTP/1.1\r\n"));

    let (address, _server) =
        answering("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 19\r\n\r\nsnapshot: starting\n");
    let output = entrepot(&["health", "--url", &format!("http://{address}/readyz")], &[]);
    assert_eq!(
        (output.status.code(), errors(&output).as_str()),
        (Some(1), "error: not ready (503): snapshot: starting\n")
    );

    let output = entrepot(&["health", "--url", &format!("http://{}/readyz", nobody())], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("is `entrepot up` running?"), "{}", errors(&output));
}

#[test]
fn completions_are_for_the_shell_that_is_asked_for() {
    for (shell, part) in
        [("bash", "complete -F _entrepot"), ("zsh", "#compdef entrepot"), ("fish", "complete -c entrepot")]
    {
        let output = entrepot(&["completions", shell], &[]);
        assert!(String::from_utf8(output.stdout).unwrap().contains(part), "{shell}");
    }
}

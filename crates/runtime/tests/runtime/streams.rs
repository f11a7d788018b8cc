//! exec, attach, port forwarding, log rotation.

use std::time::Duration;

use orlop_cri::{AttachOptions, CriError, ExecOptions, Runtime, SecurityProfile, TerminalSize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Host, log_text, shell};

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_sync() {
    let host = Host::with_image().await;
    let sandbox = host.sandbox().await;
    let mut config = shell("c", "sleep 1000");
    config.security.seccomp = SecurityProfile::RuntimeDefault;
    let id = host.start(&sandbox, config).await;
    let sh = |script: &str| vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()];
    let none = Duration::ZERO;
    let output = host.rt().exec_sync(&id, &sh("echo out; echo err >&2; pwd; exit 5"), none).await.unwrap();
    assert_eq!(
        (output.exit_code, output.stdout.as_slice(), output.stderr.as_slice()),
        (5, &b"out\n/srv/here\n"[..], &b"err\n"[..])
    );
    // The filter and the rights of the container hold for exec, too.
    let output = host
        .rt()
        .exec_sync(&id, &sh("grep -E 'Seccomp:|CapEff|CapBnd' /proc/self/status"), none)
        .await
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("Seccomp:\t2")
            && text.contains("CapEff:\t00000000a80425fb")
            && text.contains("CapBnd:\t00000000a80425fb"),
        "{text}"
    );
    let error = host.rt().exec_sync(&id, &words("nope -x"), none).await.unwrap_err().to_string();
    assert!(error.ends_with("OCI runtime exec failed: exec failed: unable to start container process: exec: \"nope\": executable file not found in $PATH"), "{error}");
    // Time runs out: the whole exec dies.
    let before = std::time::Instant::now();
    let error =
        host.rt().exec_sync(&id, &sh("sleep 999 & sleep 998"), Duration::from_millis(300)).await.unwrap_err();
    assert!(matches!(error, CriError::DeadlineExceeded(_)), "{error:?}");
    assert!(before.elapsed() < Duration::from_secs(5));
    let mut left = String::from("sleep 99");
    for _ in 0..100 {
        left = String::from_utf8(host.rt().exec_sync(&id, &words("ps"), none).await.unwrap().stdout).unwrap();
        if !left.contains("sleep 99") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!left.contains("sleep 99"), "{left}");
    // A child that keeps the pipe does not hold the answer up.
    let output = host.rt().exec_sync(&id, &sh("sleep 5 & echo done"), none).await.unwrap();
    assert_eq!(output.stdout, b"done\n");
    let big = host.rt().exec_sync(&id, &sh("head -c 20000000 /dev/zero"), none).await.unwrap();
    assert_eq!(big.stdout.len(), 16 << 20);
    host.rt().stop_container(&id, Duration::ZERO).await.unwrap();
    let error = host.rt().exec_sync(&id, &words("true"), none).await.unwrap_err();
    assert!(matches!(error, CriError::FailedPrecondition(_)), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_with_pipes_and_terminal() {
    let host = Host::with_image().await;
    let sandbox = host.sandbox().await;
    let id = host.start(&sandbox, shell("c", "sleep 1000")).await;
    let options = ExecOptions { command: words("cat"), stdin: true, stdout: true, stderr: true, tty: false };
    let mut session = host.rt().exec(&id, options).await.unwrap();
    let mut stdin = session.streams.stdin.take().unwrap();
    stdin.write_all(b"through the pipe").await.unwrap();
    drop(stdin);
    let mut text = String::new();
    session.streams.stdout.take().unwrap().read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "through the pipe");
    assert_eq!(session.exit.await.unwrap().unwrap(), 0);
    let options = ExecOptions { command: words("sh"), stdin: true, stdout: true, stderr: false, tty: true };
    let mut session = host.rt().exec(&id, options).await.unwrap();
    let mut stdin = session.streams.stdin.take().unwrap();
    session.streams.resize.as_ref().unwrap().send(TerminalSize { width: 132, height: 43 }).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    stdin.write_all(b"tty; stty size; echo $TERM; exit 4\n").await.unwrap();
    let mut text = String::new();
    session.streams.stdout.take().unwrap().read_to_string(&mut text).await.unwrap();
    assert!(text.contains("/dev/pts/") && text.contains("43 132") && text.contains("xterm"), "{text}");
    assert_eq!(session.exit.await.unwrap().unwrap(), 4);
    // Dropping the session kills.
    let options = ExecOptions { command: words("sleep 777"), ..ExecOptions::default() };
    drop(host.rt().exec(&id, options).await.unwrap());
    for _ in 0..100 {
        let ps = host.rt().exec_sync(&id, &words("ps"), Duration::ZERO).await.unwrap().stdout;
        if !String::from_utf8(ps).unwrap().contains("sleep 777") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the dropped exec lives on");
}

#[tokio::test(flavor = "multi_thread")]
async fn attach() {
    let host = Host::with_image().await;
    let sandbox = host.sandbox().await;
    let mut config = shell("c", "while read line; do echo got $line; echo err >&2; done; echo eof");
    config.stdin = true;
    config.stdin_once = true;
    let id = host.start(&sandbox, config).await;
    let all = AttachOptions { stdin: true, stdout: true, stderr: true };
    let mut streams = host.rt().attach(&id, all).await.unwrap();
    let mut stdin = streams.stdin.take().unwrap();
    stdin.write_all(b"one\n").await.unwrap();
    let mut stdout = streams.stdout.take().unwrap();
    let mut buffer = [0; 64];
    let count = stdout.read(&mut buffer).await.unwrap();
    assert_eq!(&buffer[..count], b"got one\n");
    drop(stdin);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "eof\n");
    let status = host.wait(&id).await;
    assert_eq!(status.exit_code, 0);
    assert_eq!(log_text(&status.log_path).matches("stdout:").count(), 2);
    // A terminal of its own.
    let mut config = shell("t", "stty size; read line; echo got $line");
    config.stdin = true;
    config.tty = true;
    let id = host.start(&sandbox, config).await;
    let mut streams = host.rt().attach(&id, all).await.unwrap();
    assert!(streams.stderr.is_none() && streams.resize.is_some());
    streams.stdin.as_mut().unwrap().write_all(b"typed\n").await.unwrap();
    let mut text = String::new();
    streams.stdout.take().unwrap().read_to_string(&mut text).await.unwrap();
    assert!(text.contains("got typed"), "{text}");
    let status = host.wait(&id).await;
    assert!(log_text(&status.log_path).contains("got typed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn log_rotation() {
    let host = Host::with_image().await;
    let sandbox = host.sandbox().await;
    let id =
        host.start(&sandbox, shell("c", "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.01; done")).await;
    let path = host.rt().container_status(&id).await.unwrap().log_path;
    let old = path.with_extension("old");
    while log_text(&path).is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    std::fs::rename(&path, &old).unwrap();
    host.rt().reopen_container_log(&id).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    host.rt().stop_container(&id, Duration::ZERO).await.unwrap();
    let numbers: Vec<usize> = [&old, &path]
        .iter()
        .flat_map(|path| {
            log_text(path)
                .lines()
                .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
                .collect::<Vec<_>>()
        })
        .collect();
    assert!(numbers.len() > 10);
    assert!(
        numbers.iter().enumerate().all(|(index, number)| index == *number),
        "no line is lost: {numbers:?}"
    );
    // Long lines come in parts.
    let (status, _) = host.run(&sandbox, shell("long", "head -c 40000 /dev/zero; echo end")).await;
    let text = std::fs::read_to_string(status.log_path).unwrap();
    let tags: Vec<&str> = text.lines().map(|line| line.split(' ').nth(2).unwrap()).collect();
    assert_eq!(tags, ["P", "P", "F"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn port_forward() {
    let host = Host::with_image().await;
    let sandbox = host.sandbox().await;
    let id = host.start(&sandbox, shell("c", "echo listening; nc -l -p 8080 -e cat")).await;
    let path = host.rt().container_status(&id).await.unwrap().log_path;
    while log_text(&path).is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut connection = loop {
        match host.rt().port_forward(&sandbox, 8080).await {
            Ok(connection) => break connection,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    connection.write_all(b"ping").await.unwrap();
    let mut buffer = [0; 4];
    connection.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"ping");
    let Err(error) = host.rt().port_forward(&sandbox, 81).await else { panic!("nothing listens there") };
    assert!(error.to_string().starts_with("failed to connect to localhost:81 inside namespace"), "{error}");
}

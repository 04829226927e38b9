//! A headless Chromium, controlled by its DevTools protocol through a pair of pipes.

use serde_json::{Value, json};
use std::cell::{Cell, RefCell};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Time limit for one command or one wait.
const PATIENCE: Duration = Duration::from_secs(60);

/// A browser with one page.
pub struct Browser {
    process: Child,
    commands: RefCell<ChildStdin>,
    messages: Receiver<Value>,
    /// Events received and not yet examined.
    events: RefCell<Vec<Value>>,
    sent: Cell<u64>,
    session: String,
    /// Profile directory, removed after the browser has ended.
    _profile: tempfile::TempDir,
}

/// A screen: its size in CSS pixels, and its color scheme.
#[derive(Clone, Copy)]
pub struct Screen {
    pub width: u32,
    pub height: u32,
    pub is_dark: bool,
}

impl Browser {
    /// Starts a browser. Returns `None` if Chromium is not installed.
    pub fn start() -> Option<Browser> {
        let has_chromium =
            Command::new("chromium").arg("--version").output().is_ok_and(|output| output.status.success());
        if !has_chromium {
            return None;
        }
        let profile = tempfile::tempdir().expect("a temporary directory can be created");
        // Chromium reads from descriptor 3, writes to descriptor 4, and ends when the pipe is closed.
        let line = "exec chromium --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run \
                    --disable-background-networking --disable-component-update --hide-scrollbars --lang=en \
                    --remote-debugging-pipe --user-data-dir=\"$0\" 3<&0 4>&1 </dev/null >/dev/null 2>&1";
        let mut command = Command::new("sh");
        command.arg("-c").arg(line).arg(profile.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("sh can be started");
        let commands = RefCell::new(process.stdin.take().expect("standard input is piped"));
        let mut output = BufReader::new(process.stdout.take().expect("standard output is piped"));
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            while output.read_until(0, &mut bytes).is_ok_and(|read| read > 0) {
                let message = serde_json::from_slice(bytes.strip_suffix(&[0]).unwrap_or(&bytes));
                if message.is_ok_and(|message| sender.send(message).is_err()) {
                    break;
                }
                bytes.clear();
            }
        });
        let mut browser = Browser {
            process,
            commands,
            messages,
            events: RefCell::default(),
            sent: Cell::new(0),
            session: String::new(),
            _profile: profile,
        };
        let target = browser.tell("Target.createTarget", json!({ "url": "about:blank" }))["targetId"].clone();
        let session = browser.tell("Target.attachToTarget", json!({ "targetId": target, "flatten": true }));
        browser.session = session["sessionId"].as_str().expect("the session id is a string").to_owned();
        ["Page", "Runtime", "Log", "Network", "Accessibility"].iter().for_each(|part| {
            browser.tell(&format!("{part}.enable"), json!({}));
        });
        Some(browser)
    }

    /// Sends a command and waits for its response.
    pub fn tell(&self, method: &str, parameters: Value) -> Value {
        let number = self.sent.replace(self.sent.get() + 1);
        let mut command = json!({ "id": number, "method": method, "params": parameters });
        if !self.session.is_empty() {
            command["sessionId"] = self.session.as_str().into();
        }
        self.commands.borrow_mut().write_all(format!("{command}\0").as_bytes()).expect("the browser is running");
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let message = self.messages.recv_timeout(left).unwrap_or_else(|error| panic!("{method}: {error}"));
            match message["id"].as_u64() {
                Some(id) if id == number => {
                    assert!(message["error"].is_null(), "{method}: {message}");
                    return message["result"].clone();
                }
                Some(_) => {}
                None => self.events.borrow_mut().push(message),
            }
        }
    }

    /// Opens a URL on a screen and waits until the page is loaded.
    pub fn open(&self, url: &str, screen: Screen) {
        self.turn_to(screen);
        self.tell("Page.navigate", json!({ "url": url }));
        self.wait_for("document.readyState === 'complete'");
    }

    /// Changes the screen of the current page.
    pub fn turn_to(&self, Screen { width, height, is_dark }: Screen) {
        let scheme = if is_dark { "dark" } else { "light" };
        let feature = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.tell("Emulation.setEmulatedMedia", json!({ "features": feature }));
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500 });
        self.tell("Emulation.setDeviceMetricsOverride", size);
    }

    /// Returns the value of a JavaScript expression.
    pub fn evaluate(&self, expression: &str) -> Value {
        let asked = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.tell("Runtime.evaluate", asked);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Waits until an expression is true.
    pub fn wait_for(&self, expression: &str) {
        let end = Instant::now() + PATIENCE;
        while self.evaluate(expression) != true {
            if Instant::now() >= end {
                panic!("timed out: {expression}\n{}", self.evaluate("document.body.innerText").as_str().unwrap_or(""));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Returns the text of the element with this id.
    pub fn text(&self, id: &str) -> String {
        self.evaluate(&format!("document.getElementById({id:?}).textContent")).as_str().expect("an element").to_owned()
    }

    /// Presses a key in the element that has the focus.
    pub fn press(&self, key: &str) {
        let code = json!({ "ArrowLeft": 37, "ArrowRight": 39, "Tab": 9, "Enter": 13 })[key].clone();
        // Only a key with a text presses a button.
        let text = if key == "Enter" { "\r" } else { "" };
        for kind in ["keyDown", "keyUp"] {
            let event = json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text });
            self.tell("Input.dispatchKeyEvent", event);
        }
    }

    /// Returns every exception, console error, console warning and failed request since the last call.
    pub fn complaints(&self) -> Vec<String> {
        // The browser sends messages in order, so that every earlier event arrives before this response.
        self.evaluate("0");
        let is_complaint = |event: &Value| match event["method"].as_str().unwrap_or_default() {
            "Runtime.exceptionThrown" => true,
            // A page that closes an event stream itself cancels the request.
            "Network.loadingFailed" => event["params"]["canceled"] != true,
            "Runtime.consoleAPICalled" => {
                ["error", "warning", "assert"].contains(&event["params"]["type"].as_str().unwrap())
            }
            "Log.entryAdded" => {
                event["params"]["entry"]["level"] == "error" || event["params"]["entry"]["level"] == "warning"
            }
            "Network.responseReceived" => event["params"]["response"]["status"].as_u64() >= Some(400),
            _ => false,
        };
        let events = self.events.take();
        events.iter().filter(|event| is_complaint(event)).map(|event| event["params"].to_string()).collect()
    }

    /// Returns the URLs requested since the last call of `complaints`.
    pub fn requested(&self) -> Vec<String> {
        self.evaluate("0");
        let events = self.events.borrow();
        let requests = events.iter().filter(|event| event["method"] == "Network.requestWillBeSent");
        requests.map(|event| event["params"]["request"]["url"].as_str().expect("a string").to_owned()).collect()
    }

    /// Returns the page as a screen reader receives it: role and name of each node, in order.
    pub fn accessible(&self) -> Vec<(String, String)> {
        let tree = self.tell("Accessibility.getFullAXTree", json!({}));
        let nodes = tree["nodes"].as_array().expect("a list").iter().filter(|node| node["ignored"] == false);
        let text = |value: &Value| value["value"].as_str().unwrap_or_default().to_owned();
        nodes.map(|node| (text(&node["role"]), text(&node["name"]))).collect()
    }

    /// Writes a PNG of the visible part of the page.
    pub fn photograph(&self, file: &Path) {
        let shot = self.tell("Page.captureScreenshot", json!({ "format": "png" }));
        std::fs::write(file, base64(shot["data"].as_str().expect("a string"))).expect("the file can be written");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The browser's other processes end with this one.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Decodes base64 (RFC 4648).
fn base64(text: &str) -> Vec<u8> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let digits: Vec<u32> = text.bytes().filter(|byte| *byte != b'=').map(|byte| u32::from(digit(byte))).collect();
    let bytes = |four: &[u32]| {
        let bits = four.iter().fold(0, |bits, digit| bits << 6 | digit) << (6 * (4 - four.len()));
        bits.to_be_bytes()[1..four.len()].to_vec()
    };
    digits.chunks(4).flat_map(bytes).collect()
}

//! Clients that connect and disconnect at random, and in the end come home: they stay connected and read everything.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::body::Body;
use crate::book::{Book, Ending, Name};
use crate::dice::{Dice, Owner};
use crate::link::{Came, Link, heard};
use crate::support::soon;
use crate::world::{EVENTS, JOURNAL_AGE, News, Time, USERS_ALONE, WRITE_TIMEOUT, World, user};

/// How often a client acknowledges.
#[derive(Clone, Copy, Debug)]
enum Acks {
    Often,
    InLumps,
    Never,
}

impl Acks {
    fn every(self) -> Option<u64> {
        match self {
            Self::Often => Some(3),
            Self::InLumps => Some(40),
            Self::Never => None,
        }
    }
}

/// How a client ends a connection.
#[derive(Clone, Copy, Debug)]
enum Leave {
    Reset,
    /// Sends a close frame, with or without a code, and reads to the end.
    Close(Option<u16>),
    /// Closes and gives up the session.
    Goodbye,
    /// Opens another connection for the same session while this one is open, then resets this one.
    Abandon,
    /// Opens another connection for the same session while this one is open, then reads this one to its end.
    TakeOver,
}

/// A session client, with its records of its sessions.
pub(crate) struct Roamer {
    world: Arc<World>,
    user: usize,
    number: usize,
    dice: Dice,
    books: Vec<Book>,
    /// The resume token of the latest session, if the client intends to resume it.
    resume: Option<String>,
}

impl Roamer {
    pub(crate) fn new(world: Arc<World>, user: usize, number: usize) -> Self {
        let dice = Dice::of(world.seed, Owner::Session(number));
        Self { world, user, number, dice, books: Vec::new(), resume: None }
    }

    fn is_alone(&self) -> bool {
        self.user < USERS_ALONE
    }

    fn book(&mut self) -> &mut Book {
        self.books.last_mut().expect("a session was begun")
    }

    /// Roams, comes home, and returns its books.
    pub(crate) async fn live(mut self) -> Vec<Book> {
        let mut link = None;
        while self.world.time() == Time::Roam {
            let mut here = match link.take() {
                Some(link) => link,
                None => match self.arrive(None).await {
                    Some(link) => link,
                    None => continue,
                },
            };
            if self.stay(&mut here).await {
                link = if self.world.time() == Time::Roam { self.leave(here).await } else { Some(here) };
            }
        }
        self.come_home(link).await;
        self.books
    }

    /// Connects and resumes the session or begins a new one. Returns `None` if that failed. `before` is an older
    /// connection that is still open; it is read to its end.
    async fn arrive(&mut self, before: Option<Link>) -> Option<Link> {
        let takes_little = self.dice.one_in(2);
        let mut link = Link::open(self.world.source(self.number), self.world.clients, takes_little).await;
        if before.is_none() && self.dice.one_in(12) {
            self.resume = None;
        }
        let token = user(self.user);
        let resume = match self.resume.clone() {
            Some(resume) => {
                // Sometimes acts as if the client's process had lost its last messages.
                let forgotten = if self.dice.one_in(5) { self.dice.below(30) } else { 0 };
                let seq = self.book().last().saturating_sub(forgotten);
                self.book().ack(seq);
                Some((resume, seq))
            }
            None => None,
        };
        let event = EVENTS[0];
        link.bind(&token, event, resume.as_ref().map(|(resume, seq)| (&**resume, *seq))).await;
        if let Some(before) = before
            && let Some(book) = self.books.last_mut()
        {
            before.read_late(book).await;
        }
        let bound = link.bound().await?;
        let epoch = Name::of(&bound.epoch);
        let goes_on = resume.is_some() && self.book().epoch == epoch;
        assert_eq!(bound.recovered.is_some(), resume.is_some(), "{bound:?}");
        if goes_on {
            assert_eq!(Some(bound.seq), resume.map(|(_, seq)| seq), "{bound:?}");
            if bound.recovered == Some(true) {
                link.is_recovered_to(self.book().last());
            }
        } else {
            assert_eq!((bound.seq, bound.recovered.unwrap_or_default()), (0, false), "{bound:?}");
            self.books.push(Book::new(self.user, epoch));
            if self.dice.one_in(2) {
                link.bind(&token, EVENTS[1], None).await;
            }
        }
        self.resume = Some(bound.resume);
        Some(link)
    }

    /// Reads for a while and returns whether the connection is still open.
    async fn stay(&mut self, link: &mut Link) -> bool {
        let frames = 1 + self.dice.below(150);
        let acks = self.dice.pick(&[Acks::Often, Acks::Often, Acks::InLumps, Acks::InLumps, Acks::Never]);
        let sleeps_long = self.dice.one_in(12).then(|| self.dice.below(frames));
        let mut unacked = 0;
        for frame in 0..frames {
            if self.dice.one_in(40) {
                self.world.idle(Duration::from_millis(self.dice.below(120))).await;
            }
            if sleeps_long == Some(frame) {
                self.world.idle(WRITE_TIMEOUT + Duration::from_millis(self.dice.below(200))).await;
            }
            if self.dice.one_in(500) {
                let (kind, token) = (self.dice.pick(&["bind", "unbind"]), user(self.user));
                match kind {
                    "bind" => link.bind(&token, EVENTS[1], None).await,
                    _ => link.say(json!({ "type": "unbind", "event": EVENTS[1] })).await,
                }
            }
            let book = self.books.last_mut().expect("a session was begun");
            let came = tokio::select! {
                biased;
                () = self.world.until(Time::ComeHome) => return true,
                came = link.read(book) => came,
            };
            match came {
                Came::Ended(_) => return false,
                Came::Push(..) | Came::Gap => unacked += 1,
                Came::Answer | Came::Pong => {}
            }
            if acks.every().is_some_and(|every| unacked >= every) {
                unacked = 0;
                let last = book.last();
                link.ack(book, last).await;
            }
        }
        true
    }

    /// Ends the connection, and waits for a while or not at all. Returns the next connection if it is already open.
    async fn leave(&mut self, mut link: Link) -> Option<Link> {
        let leave = match self.dice.below(12) {
            _ if self.is_alone() => Leave::Goodbye,
            0..=3 => Leave::Reset,
            4..=6 => Leave::Close(Some(1001)),
            7 => Leave::Close(None),
            8 => Leave::Goodbye,
            9 => Leave::Abandon,
            _ => Leave::TakeOver,
        };
        let book = self.books.last_mut().expect("a session was begun");
        match leave {
            Leave::Reset => link.reset(),
            Leave::Close(code) => {
                link.close(code).await;
                while !matches!(link.read(book).await, Came::Ended(_)) {}
            }
            Leave::Goodbye => {
                link.close(Some(1000)).await;
                while !matches!(link.read(book).await, Came::Ended(_)) {}
                self.resume = None;
            }
            Leave::Abandon => {
                let next = self.arrive(None).await;
                link.reset();
                return next;
            }
            Leave::TakeOver => return self.arrive(Some(link)).await,
        }
        let away = match self.dice.below(8) {
            0..4 => 0,
            4..7 => self.dice.below(150),
            // Sometimes stays away for too long.
            _ => self.dice.below(2 * JOURNAL_AGE.as_millis() as u64),
        };
        self.world.idle(Duration::from_millis(away)).await;
        None
    }

    /// Stays connected, and reads and acknowledges everything until the last message has arrived.
    async fn come_home(&mut self, mut link: Option<Link>) {
        let mut is_known = false;
        loop {
            let mut here = match link.take() {
                Some(link) => link,
                None => match self.arrive(None).await {
                    Some(link) => link,
                    None => continue,
                },
            };
            if !std::mem::replace(&mut is_known, true) {
                self.world.tell(News::IsHome);
            }
            if self.read_all(&mut here).await {
                return self.end(here).await;
            }
        }
    }

    /// Reads until the last message has arrived and the gateway knows this. Returns false if the connection ended
    /// first.
    async fn read_all(&mut self, link: &mut Link) -> bool {
        let mut has_all = false;
        loop {
            let book = self.books.last_mut().expect("a session was begun");
            let came = tokio::select! {
                biased;
                () = self.world.until(Time::Leave) => {
                    assert!(has_all, "nobody leaves before all have everything");
                    return true;
                }
                came = link.read(book) => came,
            };
            match came {
                Came::Push(Body { number, .. }) => {
                    let last = book.last();
                    link.ack(book, last).await;
                    if number as usize >= self.world.pushes {
                        link.say(json!({ "type": "ping" })).await;
                    }
                }
                Came::Gap => {
                    let last = book.last();
                    link.ack(book, last).await;
                }
                // The pong shows that the gateway has read the ack sent before the ping.
                Came::Pong if !std::mem::replace(&mut has_all, true) => {
                    self.world.tell(News::HasAll { user: self.user });
                }
                Came::Pong | Came::Answer => {}
                Came::Ended(code) => {
                    assert!(!has_all, "closed with {code:?} at home");
                    return false;
                }
            }
        }
    }

    /// Closes the connection, or waits until the gateway closes it.
    async fn end(&mut self, mut link: Link) {
        let says_goodbye = self.number.is_multiple_of(2);
        let book = self.book();
        book.ending = Ending::Complete;
        if says_goodbye {
            link.close(Some(1000)).await;
        } else {
            self.world.tell(News::IsReadyToEnd);
        }
        let book = self.books.last_mut().expect("a session was begun");
        let last = book.last();
        loop {
            if let Came::Ended(code) = link.read(book).await {
                assert_eq!(book.last(), last, "nothing was on its way");
                if says_goodbye {
                    self.world.tell(News::IsReadyToEnd);
                } else {
                    assert_eq!(code, Some(1012));
                }
                return;
            }
        }
    }
}

/// The messages that a legacy client received on each of its connections.
#[derive(Debug)]
pub(crate) struct Visits {
    pub(crate) user: usize,
    pub(crate) connections: Vec<Vec<Body>>,
}

/// A legacy client. It only binds and reads.
pub(crate) struct Listener {
    world: Arc<World>,
    user: usize,
    number: usize,
    dice: Dice,
    visits: Visits,
}

impl Listener {
    pub(crate) fn new(world: Arc<World>, user: usize, number: usize) -> Self {
        let dice = Dice::of(world.seed, Owner::Legacy(number));
        Self { world, user, number, dice, visits: Visits { user, connections: Vec::new() } }
    }

    pub(crate) async fn live(mut self) -> Visits {
        while self.world.time() == Time::Roam {
            self.visit().await;
        }
        self.world.tell(News::IsHome);
        while !self.stay_home().await {}
        self.visits
    }

    async fn arrive(&mut self) -> crate::support::Client {
        let mut client = crate::support::Client::connect_from(self.world.source(self.number), self.world.clients).await;
        client.send_bind(&user(self.user), EVENTS[0]).await;
        self.visits.connections.push(Vec::new());
        client
    }

    /// The next message; `None` at the end.
    async fn next(&mut self, client: &mut crate::support::Client) -> Option<Body> {
        use tokio_tungstenite::tungstenite::Message;
        let body = soon(async {
            loop {
                match heard(&mut client.socket).await {
                    Some(Ok(Message::Text(text))) => return Some(Body::read(&text)),
                    Some(Ok(Message::Binary(bytes))) => return Some(Body::read(std::str::from_utf8(&bytes).unwrap())),
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return None,
                }
            }
        });
        let body = body.await?;
        self.visits.connections.last_mut().expect("arrived").push(body);
        Some(body)
    }

    async fn visit(&mut self) {
        use tokio_tungstenite::tungstenite::Message;
        let mut client = self.arrive().await;
        let world = self.world.clone();
        for _ in 0..self.dice.below(300) {
            if self.dice.one_in(60) {
                self.world.idle(Duration::from_millis(self.dice.below(80))).await;
            }
            tokio::select! {
                biased;
                () = world.until(Time::ComeHome) => break,
                message = self.next(&mut client) => if message.is_none() { return },
            }
        }
        if self.dice.one_in(3) {
            return client.reset();
        }
        let _sent = soon(futures_util::SinkExt::send(&mut client.socket, Message::Close(None))).await;
        while self.next(&mut client).await.is_some() {}
    }

    /// Reads until the last message has arrived, then to the end of the connection. Returns false if the connection
    /// ended first.
    async fn stay_home(&mut self) -> bool {
        let mut client = self.arrive().await;
        loop {
            match self.next(&mut client).await {
                None => return false,
                Some(body) if body.number as usize >= self.world.pushes => break,
                Some(_) => {}
            }
        }
        let user = self.user;
        self.world.tell(News::HasAll { user });
        while self.next_before_leaving(&mut client).await {}
        self.world.tell(News::IsReadyToEnd);
        while self.next(&mut client).await.is_some() {}
        true
    }

    async fn next_before_leaving(&mut self, client: &mut crate::support::Client) -> bool {
        let world = self.world.clone();
        tokio::select! {
            biased;
            () = world.until(Time::Leave) => false,
            message = self.next(client) => {
                assert!(message.is_some(), "closed at home");
                true
            }
        }
    }
}

//! Two processes meet and talk, each with its halves on two tasks: start it twice with the same address (`@tasks` where none is given).
//!
//! `cargo run --example tasks --features tokio`

use futures_util::{SinkExt, StreamExt, stream};
use ringfence::{Address, Options, Role, tokio::join};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address: Address = std::env::args().nth(1).as_deref().unwrap_or("@tasks").parse()?;
    let channel = join(&address, &Options::new()).await?;
    let role = channel.get_ref().role();
    println!("this process is the {role}");
    let (mut sender, mut receiver) = channel.split();
    if role == Role::Guest {
        // Each message goes back, and the end as well.
        return Ok(receiver.forward(sender).await?);
    }
    let asking = tokio::spawn(async move {
        let questions = (0..5).map(|number| Ok(format!("question {number}")));
        sender.send_all(&mut stream::iter(questions)).await?;
        SinkExt::<&[u8]>::close(&mut sender).await
    });
    while let Some(answer) = receiver.next().await.transpose()? {
        println!("{} came back", String::from_utf8_lossy(&answer));
    }
    Ok(asking.await??)
}

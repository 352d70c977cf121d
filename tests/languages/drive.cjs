// Opens a page in the system's Chromium, waits until its title says that it is through, and prints what it shows as JSON.
// node drive.cjs URL [--host-resolver-rules=…]; NODE_PATH leads to playwright-core.
const { chromium } = require("playwright-core");

const quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];

(async () => {
  const [url, ...more] = process.argv.slice(2);
  const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: [...quiet, ...more] });
  try {
    const page = await browser.newPage();
    const said = [];
    page.on("console", (message) => said.push(message.text()));
    const response = await page.goto(url);
    const status = response.status();
    if (status === 200) await page.waitForFunction("['done', 'failed'].includes(document.title)", null, { timeout: 60000 });
    console.log(JSON.stringify({ status, title: await page.title(), text: await page.innerText("body"), said }));
  } finally {
    await browser.close();
  }
})();

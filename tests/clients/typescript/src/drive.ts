// Opens a page in a headless Chromium of this machine and prints what it wrote, and its console.
// Arguments: the path of Chromium, the address of the page.

import { chromium } from "playwright-core";

const TIMEOUT_MS = 60_000;
const [executablePath, address] = process.argv.slice(2);
if (!executablePath || !address) throw new Error("usage: drive.ts CHROMIUM ADDRESS");

const browser = await chromium.launch({
  executablePath,
  timeout: TIMEOUT_MS,
  args: [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
});
try {
  const page = await browser.newPage();
  const messages: string[] = [];
  page.on("console", (message) => messages.push(message.text()));
  page.on("pageerror", (error) => messages.push(`${error}`));
  await page.goto(address, { timeout: TIMEOUT_MS });
  const outcome = await page.textContent("#outcome", { timeout: TIMEOUT_MS });
  console.log(JSON.stringify({ ...JSON.parse(outcome ?? "{}"), messages }));
} finally {
  await browser.close();
}

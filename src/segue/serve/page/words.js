// What the page says, in each of its languages.

const WORDS = {
  en: {
    name: "English", other: "中文", theme: "Light or dark",
    away: "The server does not answer. What you typed is kept; the page goes on when it is back.",
    stage: "Image or video", drop: "Drop an image or a video here", choose: "Choose a file",
    or_example: "or take a drawn example, which is what the demo model knows",
    example_scene: "A drawn scene", example_clip: "A drawn clip",
    play: "Play", frame: "Frame", threshold: "Threshold", objects: "Objects", download: "Download",
    no_probabilities: "This answer came without probabilities, so its threshold is fixed.",
    another: "Another image or video", talk: "Questions and answers", dialogue: "Dialogue", mode: "What to do",
    find: "Find", ask: "Ask", your_words: "Your words", send: "Send", stop: "Stop",
    find_hint: "What to find, several things by commas: the big green car, the triangle",
    ask_hint: "A question about the image or video",
    key_wanted: "This server wants a key:", ok: "OK", key_unknown: "The server does not know the key that was given.",
    key_letter: "The key that was given holds {0}, which a browser cannot send. Copy the key itself, without quotation marks around it.",
    unreadable: "{0} cannot be read: it is a folder, or was moved or protected. Choose an image or a video.",
    first_of: "{0} was opened, the first of {1} files: the page looks at one at a time.",
    uploading: "Sending the file …", working: "Working …", queued: "Waiting or reading …",
    frame_of: "Frame {0} of {1}", stopped: "Stopped.", object: "object {0}", show: "Show {0}", colour: "Colour of {0}",
    name_of: "Name of object {0}", nothing: "Nothing was found.", not_found: "Not found: {0}", found: "Found: {0}",
    score: "score {0}", first_media: "Choose an image or a video first.", points: "It points at: {0}",
    describe: "Describe the picture with interleaved masks.", describe_region: "What is region1?",
    marking: "Mark what you mean, or click a region:", box: "Box", brush: "Brush", ask_about: "Ask about {0}", unmark: "Remove mark {0}",
    mark_note: "Call the marks region1, region2 … in your question. It begins a new dialogue.", writing: "Drawing the video …",
  },
  zh: {
    name: "中文", other: "English", theme: "浅色或深色",
    away: "服务器没有响应。您输入的内容已保留，恢复后页面会继续。",
    stage: "图像或视频", drop: "把图像或视频拖到这里", choose: "选择文件",
    or_example: "或使用绘制的示例，演示模型只认识这类画面",
    example_scene: "绘制的场景", example_clip: "绘制的短片",
    play: "播放", frame: "帧", threshold: "阈值", objects: "物体", download: "下载",
    no_probabilities: "这个回答没有附带概率，因此阈值不可调整。",
    another: "换一个图像或视频", talk: "问答", dialogue: "对话", mode: "做什么",
    find: "查找", ask: "提问", your_words: "您的文字", send: "发送", stop: "停止",
    find_hint: "要查找的东西，多个用逗号分开：那辆绿色大汽车，三角形",
    ask_hint: "关于图像或视频的问题",
    key_wanted: "此服务器需要密钥：", ok: "确定", key_unknown: "服务器不认识给出的密钥。",
    key_letter: "给出的密钥含有 {0}，浏览器无法发送它。请只复制密钥本身，不要带引号。",
    unreadable: "无法读取 {0}：它是文件夹，或已被移动或受保护。请选择图像或视频。",
    first_of: "已打开 {0}，即 {1} 个文件中的第一个：页面一次只看一个。",
    uploading: "正在发送文件……", working: "正在处理……", queued: "正在等待或读取……",
    frame_of: "第 {0} 帧，共 {1} 帧", stopped: "已停止。", object: "物体 {0}", show: "显示{0}", colour: "{0}的颜色",
    name_of: "物体 {0} 的名称", nothing: "没有找到任何东西。", not_found: "没有找到：{0}", found: "找到：{0}",
    score: "得分 {0}", first_media: "请先选择图像或视频。", points: "指向：{0}",
    describe: "Describe the picture with interleaved masks.", describe_region: "region1 是什么？",
    marking: "标出您所指的部分，或点击一个区域：", box: "方框", brush: "画笔", ask_about: "询问{0}", unmark: "移除标记 {0}",
    mark_note: "在问题中用 region1、region2……称呼标记。这会开始新的对话。", writing: "正在绘制视频……",
  },
};

let language = localStorage.getItem("language") || (navigator.language.startsWith("zh") ? "zh" : "en");

export const current = () => language;

export function say(name, ...values) {
  return WORDS[language][name].replace(/\{(\d)\}/g, (_, place) => values[place]);
}

export function switchLanguage() {
  language = language === "en" ? "zh" : "en";
  localStorage.setItem("language", language);
  translate();
}

export function translate() {
  document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = say(element.dataset.text);
  for (const element of document.querySelectorAll("[data-label]")) {
    element.setAttribute("aria-label", say(element.dataset.label));
    if (element.tagName === "BUTTON") element.title = say(element.dataset.label);
  }
}
